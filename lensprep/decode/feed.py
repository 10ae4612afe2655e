"""Stamps for programs that must not decode them: a process that is asked in JSON and answers so.

`lenstrain` may not import the decoder, and an interpreter with torch in it is a poor place to start
decoding processes from. So it starts this one, ``python -m lensprep.feed``, and writes a request
into it: one JSON object on the first line of standard input. ``kind`` is ``tree`` (Phase 4c;
``uri``, ``split``) or ``cutouts`` (``uri``, ``catalog``, ``columns``, and ``called``: what the user
calls the folder, if it is a copy), ``normalization`` that of the checkpoint, and ``ask`` one of

======  ==========================================================================================
ask     answer, one JSON object a line on standard output
======  ==========================================================================================
plan    ``{"rows": n, "parts": [rows of each], "digest": ..., "unused": n}``, of a tree also
        ``notes``: lines for the user
parts   for each number in ``parts``, in any order: ``{"part": k, "file": path}``: an Arrow file in
        the folder ``scratch``, made by one of ``workers`` processes. The next answer comes when a
        line is written to standard input, so a slow reader never fills the disk
stamps  ``{"file": path}``: raw pixels of ``places`` (source_file, source_row_group, source_row)
======  ==========================================================================================

A file of a part has one row for every stamp that can be scored: its scalar columns, what
normalising measured, and ``pixels``, 24,576 bytes of float16. Rows that have no stamp are in
``<file>.rejects``, so that both together are all rows of the part. An error is one line on
standard error and exit status 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, MEASURED_COLUMNS, PAYLOAD_BYTES, SPLITS, STAMP_SHAPE
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.record import new_records, payload_view
from lensprep.decode.normalize import Normalizer
from lensprep.decode.placement import PLACE
from lensprep.decode.prepare import BLOB_ROWS, REJECT_SCHEMA, Preparer
from lensprep.decode.stampnpz import RejectReason, decode_batch
from lensprep.engine.local import default_workers, run_tasks
from lensprep.errors import ConfigError, InputError, ProjectError
from lensprep.source.contract import SPLIT_COLUMN, STAMP_COLUMN, FilterRules
from lensprep.source.cutoutfile import Refusal, read_cutout
from lensprep.source.cutouts import NO_CUTOUT, open_cutouts
from lensprep.source.tree import Source, SourceFile

PART_ROWS: Final = 2048
"""Rows of a part where row groups are smaller: 50 MB of pixels."""
PIXELS: Final = "pixels"
REJECTS_SUFFIX: Final = ".rejects"
PIXELS_TYPE: Final = pa.binary(PAYLOAD_BYTES)
RAW_TYPE: Final = pa.binary(2 * PAYLOAD_BYTES)
"""float32 nanomaggies."""
_BATCH_ROWS: Final = 8 * BLOB_ROWS


def main() -> int:
    """Answer one request; returns the exit status."""
    try:
        request = json.loads(sys.stdin.readline())
        for answer in answer_request(request):
            print(json.dumps(answer), flush=True)
            if request["ask"] == "parts" and not sys.stdin.readline():
                return 1  # whoever asked has gone
    except ProjectError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def answer_request(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Answers to one request; see the head of this module.

    Raises
    ------
    InputError
        If the source cannot be read; and whatever reading it raises.
    """
    kinds: dict[str, Any] = {"tree": Tree, "cutouts": CutoutFolder}
    source = kinds[request["kind"]].open(request)
    if request["ask"] == "plan":
        yield source.plan()
    elif request["ask"] == "stamps":
        file = Path(request["scratch"]) / "stamps.arrow"
        pixels = source.raw_stamps(request["places"])
        _write(file, pa.table({PIXELS: _bytes_column(pixels, RAW_TYPE)}))
        yield {"file": str(file)}
    else:
        tasks = source.tasks(request["parts"], Path(request["scratch"]))
        workers = int(request.get("workers") or default_workers())
        yield from run_tasks(run_part, tasks, workers=min(workers, max(1, len(tasks))))


def run_part(task: PartTask | CutoutTask) -> dict[str, Any]:
    """Decode one part and write its two files."""
    table, rejects = task.run()
    file = task.scratch / f"part-{task.index:06d}.arrow"
    _write(Path(f"{file}{REJECTS_SUFFIX}"), rejects)
    _write(file, table)
    return {"part": task.index, "file": str(file)}


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _bytes_column(pixels: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Pixels of each stamp as bytes; nothing is copied if they lie one after the other."""
    flat = np.ascontiguousarray(pixels)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])


# --------------------------------------------------------------------------- Phase 4c trees


@dataclass(frozen=True)
class Tree:
    """A split of a Phase 4c tree, in parts of neighbouring row groups."""

    source: Source
    split: str
    spec: NormalizationSpec | None

    @classmethod
    def open(cls, request: Mapping[str, Any]) -> Tree:
        """List the tree and read every footer."""
        split = request.get("split")
        if request["ask"] != "stamps" and split not in SPLITS:
            raise ConfigError(f"There is no split {split!r}; there are: {', '.join(SPLITS)}.")
        return cls(Source.open(request["uri"]), split or "", _spec(request))

    def plan(self) -> dict[str, Any]:
        """Rows and parts; a part may hold rows of other splits, which are left out when read."""
        parts = self._parts()
        if not parts:
            known = sorted({file.split for file in self.source.files if file.split and file.rows})
            raise InputError(
                f"{self.source.uri} has no rows of split {self.split!r}; it has some of: "
                f"{', '.join(known) or 'none'}."
            )
        rows = [sum(file.row_groups[group].rows for file, group in part) for part in parts]
        notes = [
            f"{self.source.uri}: column {name} {what}; it is left out."
            for name, what in self.source.left_out.items()
        ]
        digest = self.source.digest()
        return {"rows": sum(rows), "parts": rows, "digest": digest, "unused": 0, "notes": notes}

    def _parts(self) -> list[tuple[tuple[SourceFile, int], ...]]:
        parts: list[tuple[tuple[SourceFile, int], ...]] = []
        held: list[tuple[SourceFile, int]] = []
        rows = 0
        for file in self.source.files:
            if file.split not in (None, self.split):
                continue
            for group, info in file.filled:
                if held and rows + info.rows > PART_ROWS:
                    parts.append(tuple(held))
                    held, rows = [], 0
                held.append((file, group))
                rows += info.rows
        return [*parts, tuple(held)] if held else parts

    def tasks(self, numbers: Sequence[int], scratch: Path) -> list[PartTask]:
        """Tasks of some parts."""
        parts = self._parts()
        bare = replace(self.source, files=(), bad_files=())
        return [
            PartTask(number, bare, parts[number], self.split, _required(self.spec), scratch)
            for number in numbers
        ]

    def raw_stamps(self, places: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Nanomaggies of some rows, shape (n, 3, 64, 64)."""
        files = {file.path: file for file in self.source.files}
        out = np.zeros((len(places), *STAMP_SHAPE), np.float32)
        for k, place in enumerate(places):
            file = files.get(place["source_file"])
            if file is None:
                raise InputError(f"{self.source.uri} has no file {place['source_file']} any more.")
            blob = self._blob(file, int(place["source_row_group"]), int(place["source_row"]))
            if decode_batch([blob], out[k : k + 1])[0] is not None:
                raise InputError(f"{file.path} has changed: row {place['source_row']} is damaged.")
        return out

    def _blob(self, file: SourceFile, group: int, row: int) -> bytes | None:
        first = 0
        for table in self.source.iter_row_group(file, group, [STAMP_COLUMN], batch_rows=BLOB_ROWS):
            if row < first + table.num_rows:
                return table[STAMP_COLUMN][row - first].as_py()
            first += table.num_rows
        raise InputError(f"{file.path} has changed: row group {group} has no row {row}.")


@dataclass(frozen=True)
class PartTask:
    """Some row groups -> normalised stamps with their columns."""

    index: int
    source: Source
    parts: tuple[tuple[SourceFile, int], ...]
    split: str
    spec: NormalizationSpec
    scratch: Path

    def run(self) -> tuple[pa.Table, pa.Table]:
        """Rows with a stamp, and rows without."""
        preparer = Preparer(0, FilterRules(), Normalizer(self.spec), BLOB_ROWS)
        tables, rejects, pixels = [], [REJECT_SCHEMA.empty_table()], []
        for table, blobs in self._batches():
            records = new_records(table.num_rows)
            prepared = preparer(table, blobs, records)
            ours = pc.equal(prepared.table[SPLIT_COLUMN], self.split)
            tables.append(prepared.table.filter(ours).drop_columns([PLACE]))
            kept = np.flatnonzero(ours.to_numpy())
            pixels.append(np.ascontiguousarray(payload_view(records[: prepared.rows])[kept]))
            theirs = pc.equal(prepared.left_out[SPLIT_COLUMN], self.split)
            rejects.append(prepared.left_out.filter(pc.fill_null(theirs, True)))
        column = _bytes_column(np.concatenate(pixels), PIXELS_TYPE)
        return pa.concat_tables(tables).append_column(PIXELS, column), pa.concat_tables(rejects)

    def _batches(self) -> Iterator[tuple[pa.Table, Iterator[pa.ChunkedArray]]]:
        """Scalar columns with the place of each row, and its blobs, as `Preparer` takes them."""
        for file, group in self.parts:
            first = 0
            for table in self.source.iter_row_group(file, group, batch_rows=_BATCH_ROWS):
                rows = table.num_rows
                blobs = table[STAMP_COLUMN]
                light = (
                    table.drop_columns([STAMP_COLUMN])
                    .append_column("source_file", pa.array([file.path] * rows, pa.string()))
                    .append_column("source_row_group", pa.array(np.full(rows, group, np.int32)))
                    .append_column("source_row", pa.array(np.arange(first, first + rows)))
                )
                yield light, (blobs.slice(k, BLOB_ROWS) for k in range(0, rows, BLOB_ROWS))
                first += rows


# --------------------------------------------------------------------------------- cutouts


@dataclass(frozen=True)
class CutoutFolder:
    """A folder of cutouts with its catalogue, in parts of neighbouring rows."""

    folder: Path
    table: pa.Table
    unused: int
    spec: NormalizationSpec | None

    @classmethod
    def open(cls, request: Mapping[str, Any]) -> CutoutFolder:
        """Read the catalogue and find the files."""
        if request["ask"] == "stamps":
            return cls(Path(request["uri"]), pa.table({}), 0, None)
        found = open_cutouts(
            request["uri"], request["catalog"], request.get("columns"), request.get("called")
        )
        return cls(found.folder, found.table, found.unused, _spec(request))

    def plan(self) -> dict[str, Any]:
        """Rows and parts; the digest covers the rows and the size of every file."""
        rows = self.table.num_rows
        digest = hashlib.sha256()
        for row in self.table.to_pylist():
            size = None
            if row["file"] is not None:
                with suppress(OSError):  # a link to nothing; the row will say so
                    size = (self.folder / row["file"]).stat().st_size
            digest.update(json.dumps([row, size], default=str).encode())
        parts = [min(PART_ROWS, rows - first) for first in range(0, rows, PART_ROWS)]
        return {"rows": rows, "parts": parts, "digest": digest.hexdigest(), "unused": self.unused}

    def tasks(self, numbers: Sequence[int], scratch: Path) -> list[CutoutTask]:
        """Tasks of some parts."""
        return [
            CutoutTask(
                number,
                self.folder,
                self.table.slice(number * PART_ROWS, PART_ROWS),
                _required(self.spec),
                scratch,
            )
            for number in numbers
        ]

    def raw_stamps(self, places: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Nanomaggies of some files, shape (n, 3, 64, 64); where the user's links lead is read."""
        out = np.zeros((len(places), *STAMP_SHAPE), np.float32)
        for k, place in enumerate(places):
            name = Path(str(place["source_file"]))
            if name.is_absolute() or ".." in name.parts:
                raise InputError(f"{name} lies outside {self.folder}.")
            refusal = read_cutout(self.folder / name, out[k])
            if refusal is not None:
                raise InputError(
                    f"{self.folder / name} is no cutout that can be read any more "
                    f"({refusal.reason}: {refusal.detail})."
                )
        return out


@dataclass(frozen=True)
class CutoutTask:
    """Some rows of the catalogue -> normalised stamps with their columns."""

    index: int
    folder: Path
    table: pa.Table
    spec: NormalizationSpec
    scratch: Path

    def run(self) -> tuple[pa.Table, pa.Table]:
        """Rows with a stamp, and rows without."""
        rows = self.table.num_rows
        raw = np.zeros((rows, *STAMP_SHAPE), np.float32)
        files, misses = (self.table[name].to_pylist() for name in ("file", NO_CUTOUT))
        refusals = [
            Refusal(NO_CUTOUT, misses[row])
            if file is None
            else read_cutout(self.folder / file, raw[row])
            for row, file in enumerate(files)
        ]
        good = np.array([row for row in range(rows) if refusals[row] is None], int)
        raw = np.ascontiguousarray(raw[good])
        stored = np.empty(raw.shape, "<f2")
        measured = Normalizer(self.spec)(raw, stored)
        for row in good[measured.constant]:
            refusals[row] = Refusal(RejectReason.CONSTANT_BAND, "a band has no scatter")
        sound = np.flatnonzero(~measured.constant)
        good, raw, stored, measured = good[sound], raw[sound], stored[sound], measured.take(sound)
        columns = self._columns(good)
        for name in ("median", "scale", "clip_frac"):
            for number, band in enumerate(BANDS):
                columns[f"{name}_{band}"] = pa.array(getattr(measured, name)[:, number])
        columns["pixel_hash"] = pa.array([xxhash.xxh3_128_hexdigest(s) for s in raw], pa.string())
        columns[PIXELS] = _bytes_column(stored, PIXELS_TYPE)
        return pa.table(columns), self._rejects(refusals)

    def _columns(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Scalar columns; what scores have and a catalogue lacks is null."""
        taken = self.table.take(pa.array(rows))
        taken_names = {*MEASURED_COLUMNS, PIXELS, NO_CUTOUT, "file", "split", "logit"}
        taken_names -= {"key", "label"}
        columns = {n: taken[n] for n in taken.column_names if n not in taken_names}
        empty = {"label": pa.int8(), "region_id": pa.int32(), "task_id": pa.string()}
        for name, kind in empty.items():
            if name not in columns:
                columns[name] = pa.nulls(len(rows), kind)
        columns["label"] = _labels(columns["label"])
        columns["source_file"] = taken["file"]
        columns["source_row_group"] = pa.array(np.zeros(len(rows), np.int32))
        columns["source_row"] = pa.array(rows + self.index * PART_ROWS)
        return columns

    def _rejects(self, refusals: Sequence[Refusal | None]) -> pa.Table:
        """Rows that have no stamp: as in ``rejects.parquet``, with what was found."""
        found = {row: refusal for row, refusal in enumerate(refusals) if refusal is not None}
        rows = np.array(list(found), int)
        taken = self.table.take(pa.array(rows))
        known: dict[str, Any] = {
            "task_id": taken["key"],
            "kind": pa.array(["rejected"] * len(rows), pa.string()),
            "reason": pa.array([str(r.reason) for r in found.values()], pa.string()),
            "source_file": taken["file"],
            "source_row": pa.array(rows + self.index * PART_ROWS),
            "detail": pa.array([r.detail for r in found.values()], pa.string()),
        }
        schema = REJECT_SCHEMA.append(pa.field("detail", pa.string()))
        columns = [known.get(field.name, pa.nulls(len(rows), field.type)) for field in schema]
        return pa.table(columns, schema=schema)


def _labels(column: Any) -> Any:
    try:
        return column.cast(pa.int8())
    except pa.ArrowException:
        raise InputError(f"The catalogue's label holds {column.type}, not 0 and 1.") from None


def _spec(request: Mapping[str, Any]) -> NormalizationSpec | None:
    given = request.get("normalization")
    return None if given is None else NormalizationSpec.from_dict(given)


def _required(spec: NormalizationSpec | None) -> NormalizationSpec:
    if spec is None:
        raise ConfigError("The request lacks the normalisation.")
    return spec


if __name__ == "__main__":
    sys.exit(main())
