"""Stamps that are in no dataset, normalised as somebody asks: Phase 4c trees, folders of cutouts.

    plan = plan_tree(uri, "val")            or plan_cutouts(folder, catalog)
    for part in decode_parts(plan, numbers, spec): part.columns, part.pixels, part.rejects
    tree_stamps(uri, places)                raw pixels of some rows; cutout_stamps(folder, names)

A part is some neighbouring rows, the same whoever plans it, so that finished parts can be kept.
Parts are decoded by processes of their own, a few ahead of whoever takes them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.dataset.layout import MEASURED_COLUMNS, SPLITS, STAMP_DTYPE, STAMP_SHAPE
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.record import new_records, payload_view
from lensprep.decode.cutoutfile import read_cutout, read_position
from lensprep.decode.normalize import Normalizer
from lensprep.decode.placement import PLACE
from lensprep.decode.prepare import (
    BLOB_ROWS,
    REJECT_SCHEMA,
    Preparer,
    measured_columns,
    reject_table,
)
from lensprep.decode.reasons import RejectReason
from lensprep.decode.rowgroup import BATCH_ROWS, prepare_row_groups
from lensprep.decode.stampnpz import decode
from lensprep.engine.local import run_tasks
from lensprep.errors import InputError
from lensprep.source.contract import FilterRules
from lensprep.source.cutouts import NO_CUTOUT, Refusal, open_cutouts
from lensprep.source.footers import SourceFile
from lensprep.source.survey import SPLIT_COLUMN, STAMP_COLUMN
from lensprep.source.tree import Source

PART_ROWS: Final = 2048
"""Rows of a part where row groups are smaller: 50 MB of pixels."""

Decoded = tuple[pa.Table, NDArray[np.float16], pa.Table]
"""Columns and pixels of the rows of a part that have a stamp, and the other rows, with reasons."""


@dataclass(frozen=True)
class Plan:
    """A source in parts."""

    parts: Sequence[TreePart | CutoutPart]
    digest: str
    """SHA-256 of what the source holds, as its listing says."""
    unused: int = 0
    """Files of a folder of cutouts that belong to no row."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""


class DecodedPart(NamedTuple):
    """One part of a plan, decoded."""

    number: int
    columns: pa.Table
    """Scalar columns of the rows that have a stamp, and what normalising measured."""
    pixels: NDArray[np.float16]
    """Their pixels, shape (rows, 3, 64, 64), mapped from a file that goes with the next part."""
    rejects: pa.Table
    """The other rows, as in ``rejects.parquet``."""


def decode_parts(
    plan: Plan, numbers: Sequence[int], spec: NormalizationSpec, workers: int | None = None
) -> Iterator[DecodedPart]:
    """Decode some parts of a plan, with processes that end with the last one.

    No more parts are ahead of the reader than the processes are handed, so a slow reader fills
    neither memory nor disk.

    Parameters
    ----------
    plan : Plan
    numbers : sequence of int
        Which parts, in any order.
    spec : NormalizationSpec
    workers : int, optional
        Processes; one for each processor if not given.

    Yields
    ------
    DecodedPart
        In the order in which they are finished.
    """
    with tempfile.TemporaryDirectory(prefix="lensprep-parts-") as scratch:
        tasks = [_Task(number, plan.parts[number], spec, Path(scratch)) for number in numbers]
        # Processes also for one worker: they decode while the caller uses what came before.
        with closing(run_tasks(_decode_part, tasks, workers=workers, apart=True)) as results:
            for number, columns, file, rejects in results:
                yield DecodedPart(number, columns, np.load(file, mmap_mode="r"), rejects)
                file.unlink()


@dataclass(frozen=True)
class _Task:
    number: int
    part: TreePart | CutoutPart
    spec: NormalizationSpec
    scratch: Path

    @property
    def label(self) -> str:
        """What a person calls it."""
        return str(self.part)


def _decode_part(task: _Task) -> tuple[int, pa.Table, Path, pa.Table]:
    """Decode a part; its pixels, which are many, go by way of a file."""
    columns, pixels, rejects = task.part.decode(task.spec)
    file = task.scratch / f"part-{task.number:06d}.npy"
    np.save(file, pixels)
    return task.number, columns, file, rejects


# --------------------------------------------------------------------------- Phase 4c trees


def plan_tree(uri: str | PathLike[str], split: str) -> Plan:
    """A split of a Phase 4c tree, in parts of neighbouring row groups.

    Where the split is in no folder's name, a part may hold rows of other splits, which are left out
    when it is read.

    Raises
    ------
    InputError
        If the tree has no rows of the split; and whatever `Source.open` raises.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}; there are: {', '.join(SPLITS)}.")
    source = Source.open(uri)
    bare = replace(source, files=(), bad_files=())
    parts = [TreePart(bare, tuple(groups), split) for groups in _neighbours(source.files, split)]
    if not parts:
        known = sorted({file.split for file in source.files if file.split and file.rows})
        raise InputError(
            f"{source.uri} has no rows of split {split!r}; it has some of: "
            f"{', '.join(known) or 'none'}."
        )
    notes = [
        f"{source.uri}: column {name} {what}; it is left out."
        for name, what in source.left_out.items()
    ]
    return Plan(parts, source.digest(), notes=tuple(notes))


def _neighbours(files: Sequence[SourceFile], split: str) -> Iterator[list[tuple[SourceFile, int]]]:
    """Row groups that may have rows of a split, up to `PART_ROWS` of them together."""
    held: list[tuple[SourceFile, int]] = []
    rows = 0
    for file in files:
        if file.split not in (None, split):
            continue
        for group, info in file.filled:
            if held and rows + info.rows > PART_ROWS:
                yield held
                held, rows = [], 0
            held.append((file, group))
            rows += info.rows
    if held:
        yield held


@dataclass(frozen=True)
class TreePart:
    """Some row groups of a tree."""

    source: Source
    """Without its files: it goes to every process."""
    row_groups: tuple[tuple[SourceFile, int], ...]
    split: str

    def __str__(self) -> str:
        file, group = self.row_groups[0]
        return f"{self.rows} rows from {file.path}, row group {group}, on"

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(file.row_groups[group].rows for file, group in self.row_groups)

    def decode(self, spec: NormalizationSpec) -> Decoded:
        """Decode and normalise the rows of the split."""
        preparer = Preparer(0, FilterRules(), Normalizer(spec))
        records = new_records(min(self.rows, BATCH_ROWS))
        tables, pixels, rejects = [], [], [REJECT_SCHEMA.empty_table()]
        for prepared in prepare_row_groups(
            self.source, self.row_groups, preparer, lambda rows: records
        ):
            ours = pc.equal(prepared.table[SPLIT_COLUMN], self.split)
            tables.append(prepared.table.filter(ours).drop_columns([PLACE]))
            pixels.append(payload_view(records[: prepared.rows])[ours.to_numpy()])
            theirs = pc.equal(prepared.left_out[SPLIT_COLUMN], self.split)
            rejects.append(prepared.left_out.filter(pc.fill_null(theirs, True)))
        return pa.concat_tables(tables), np.concatenate(pixels), pa.concat_tables(rejects)


def tree_stamps(
    uri: str | PathLike[str], places: Sequence[Mapping[str, Any]]
) -> NDArray[np.float32]:
    """Pixels of some rows of a tree, as they are there.

    Parameters
    ----------
    uri : str or path
    places : sequence of mapping
        ``source_file``, ``source_row_group`` and ``source_row`` of each.

    Returns
    -------
    ndarray of float32, shape (n, 3, 64, 64)
        Nanomaggies.

    Raises
    ------
    InputError
        If a row is not there any more.
    """
    source = Source.open(uri)
    files = {file.path: file for file in source.files}
    out = np.zeros((len(places), *STAMP_SHAPE), np.float32)
    for pixels, place in zip(out, places, strict=True):
        file = files.get(place["source_file"])
        if file is None:
            raise InputError(f"{source.uri} has no file {place['source_file']} any more.")
        blob = _blob(source, file, int(place["source_row_group"]), int(place["source_row"]))
        if decode(blob, pixels) is not None:
            raise InputError(f"{file.path} has changed: row {place['source_row']} is damaged.")
    return out


def _blob(source: Source, file: SourceFile, group: int, row: int) -> bytes | None:
    first = 0
    for table in source.iter_row_group(file, group, [STAMP_COLUMN], batch_rows=BLOB_ROWS):
        if row < first + table.num_rows:
            return table[STAMP_COLUMN][row - first].as_py()
        first += table.num_rows
    raise InputError(f"{file.path} has changed: row group {group} has no row {row}.")


# --------------------------------------------------------------------------------- cutouts


def plan_cutouts(
    folder: str | PathLike[str],
    catalog: str | PathLike[str],
    columns: Mapping[str, str] | None = None,
    called: str | None = None,
) -> Plan:
    """A folder of cutouts with its catalogue, in parts of neighbouring rows.

    Parameters are those of `lensprep.source.cutouts.open_cutouts`, which raises what it refuses.
    The digest covers the rows and the size of every file.
    """
    found = open_cutouts(folder, catalog, read_position, columns, called)
    digest = hashlib.sha256()
    for row in found.table.to_pylist():
        size = None
        if row["file"] is not None:
            with suppress(OSError):  # a link to nothing; the row will say so
                size = (found.folder / row["file"]).stat().st_size
        digest.update(json.dumps([row, size], default=str).encode())
    firsts = np.arange(0, found.table.num_rows, PART_ROWS)
    numbers = np.split(np.arange(found.table.num_rows), firsts[1:])
    # Taken, not sliced: a slice would go to a process with the whole table behind it.
    parts = [CutoutPart(found.folder, found.table.take(rows), int(rows[0])) for rows in numbers]
    return Plan(parts, digest.hexdigest(), found.unused)


@dataclass(frozen=True)
class CutoutPart:
    """Some rows of the catalogue of a folder of cutouts."""

    folder: Path
    table: pa.Table
    first: int
    """Number of the first row in the catalogue."""

    def __str__(self) -> str:
        return f"rows {self.first + 1} to {self.first + self.rows} of the catalogue"

    @property
    def rows(self) -> int:
        """Rows, also those without a file."""
        rows: int = self.table.num_rows
        return rows

    def decode(self, spec: NormalizationSpec) -> Decoded:
        """Decode and normalise the files of the rows."""
        raw = np.zeros((self.rows, *STAMP_SHAPE), np.float32)
        files, misses = (self.table[name].to_pylist() for name in ("file", NO_CUTOUT))
        refusals = [
            Refusal(NO_CUTOUT, miss) if file is None else read_cutout(self.folder / file, pixels)
            for file, miss, pixels in zip(files, misses, raw, strict=True)
        ]
        good = np.array([row for row in range(self.rows) if refusals[row] is None], int)
        raw = np.ascontiguousarray(raw[good])
        stored = np.empty(raw.shape, STAMP_DTYPE)
        measured = Normalizer(spec)(raw, stored)
        for row in good[measured.constant]:
            refusals[row] = Refusal(RejectReason.CONSTANT_BAND, "a band has no scatter")
        sound = np.flatnonzero(~measured.constant)
        columns = self._columns(good[sound]) | measured_columns([measured.take(sound)])
        hashes = [xxhash.xxh3_128_hexdigest(stamp) for stamp in raw[sound]]
        columns["pixel_hash"] = pa.array(hashes, pa.string())
        return pa.table(columns), stored[sound], self._rejects(refusals)

    def _columns(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Scalar columns; what scores have and a catalogue lacks is null."""
        taken = self.table.take(pa.array(rows))
        own = {*MEASURED_COLUMNS, "pixels", NO_CUTOUT, "file", "split", "logit"} - {"key", "label"}
        columns = {name: taken[name] for name in taken.column_names if name not in own}
        empty = {"label": pa.int8(), "region_id": pa.int32(), "task_id": pa.string()}
        for name, kind in empty.items():
            if name not in columns:
                columns[name] = pa.nulls(len(rows), kind)
        columns["label"] = _labels(columns["label"])
        columns["source_file"] = taken["file"]
        columns["source_row_group"] = pa.array(np.zeros(len(rows), np.int32))
        columns["source_row"] = pa.array(rows + self.first)
        return columns

    def _rejects(self, refusals: Sequence[Refusal | None]) -> pa.Table:
        """Rows that have no stamp: as in ``rejects.parquet``, with what was found."""
        found = {row: refusal for row, refusal in enumerate(refusals) if refusal is not None}
        rows = np.array(list(found), int)
        taken = self.table.take(pa.array(rows))
        known = {
            "task_id": taken["key"],
            "kind": ["rejected"] * len(rows),
            "reason": [str(refusal.reason) for refusal in found.values()],
            "source_file": taken["file"],
            "source_row": rows + self.first,
        }
        detail = pa.array([refusal.detail for refusal in found.values()], pa.string())
        return reject_table(len(rows), known).append_column("detail", detail)


def _labels(column: Any) -> Any:
    try:
        return column.cast(pa.int8())
    except pa.ArrowException:
        raise InputError(f"The catalogue's label holds {column.type}, not 0 and 1.") from None


def cutout_stamps(folder: str | PathLike[str], names: Sequence[str | None]) -> NDArray[np.float32]:
    """Pixels of some cutouts, as they are there; where the user's links lead is read.

    Returns
    -------
    ndarray of float32, shape (n, 3, 64, 64)
        Nanomaggies.

    Raises
    ------
    InputError
        If a name leads out of the folder, or a file cannot be read any more.
    """
    out = np.zeros((len(names), *STAMP_SHAPE), np.float32)
    for pixels, name in zip(out, names, strict=True):
        below = Path(str(name))
        if below.is_absolute() or ".." in below.parts:
            raise InputError(f"{below} lies outside {folder}.")
        refusal = read_cutout(Path(folder) / below, pixels)
        if refusal is not None:
            raise InputError(
                f"{Path(folder) / below} is no cutout that can be read any more "
                f"({refusal.reason}: {refusal.detail})."
            )
    return out
