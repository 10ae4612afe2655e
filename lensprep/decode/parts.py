"""Stamps that are in no dataset, normalised as asked: Phase 4c trees, folders of cutouts.

    plan = plan_tree(uri, "val")            or plan_cutouts(folder, catalog)
    for part in decode_parts(plan, numbers, spec): part.columns, part.pixels, part.rejects
    tree_stamps(uri, rows, recorded)        raw pixels of some rows; cutout_stamps(folder, names)
    iter_tree_stamps(uri, rows, recorded)   the same of many rows, in the order of the trees

A part is a range of neighbouring rows. The same source always gives the same parts, so that
finished ones can be kept. Parts are decoded in worker processes, a few ahead of the reader.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import MEASURED, SPLITS, STAMP_DTYPE
from lensprep.dataset.normalization import NormalizationSpec
from lensprep.dataset.record import payload_view
from lensprep.decode.cutoutfile import read_cutout, read_position
from lensprep.decode.normalize import Normalizer
from lensprep.decode.placement import PLACE
from lensprep.decode.prepare import (
    REJECT_SCHEMA,
    Preparer,
    measured_columns,
    reject_table,
)
from lensprep.decode.reasons import RejectReason
from lensprep.decode.rowgroup import READ_ROWS, prepare_row_groups
from lensprep.decode.stampnpz import decode_batch
from lensprep.engine.local import run_tasks
from lensprep.errors import InputError
from lensprep.source.contract import FilterRules
from lensprep.source.cutouts import NO_CUTOUT, Refusal, open_cutouts, split_name
from lensprep.source.footers import SourceFile, neighbours
from lensprep.source.survey import (
    SPLIT_COLUMN,
    STAMP_COLUMN,
    load_survey,
    recorded_survey,
    survey_record,
)
from lensprep.source.tree import Source

PART_ROWS: Final = 2048
"""Most rows of a part, unless it is a single row group: 50 MB of pixels."""

ORIGIN_COLUMNS: Final = ("source_file", "source_row_group", "source_row")
"""Columns that say where in a tree a row comes from."""

Decoded = tuple[pa.Table, NDArray[np.float16], pa.Table]
"""Columns and pixels of the rows of a part that have a stamp, and the other rows, with reasons."""


@dataclass(frozen=True)
class Plan:
    """A source divided into parts."""

    parts: Sequence[TreePart | CutoutPart]
    digest: str
    """SHA-256 over the listing of the source."""
    unused: int = 0
    """Files of a folder of cutouts that belong to no row."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""
    geometry: Geometry = DECALS
    """Of the stamps."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """What must be known of a tree to read its rows again, as `tree_stamps` takes it."""


class DecodedPart(NamedTuple):
    """One part of a plan, decoded."""

    number: int
    columns: pa.Table
    """Scalar columns of the rows that have a stamp, with what normalisation measured."""
    pixels: NDArray[np.float16]
    """Their pixels, shape (rows, bands, side, side), mapped from a file that goes with the part."""
    rejects: pa.Table
    """The other rows, as in ``rejects.parquet``."""


def decode_parts(
    plan: Plan, numbers: Sequence[int], spec: NormalizationSpec, workers: int | None = None
) -> Iterator[DecodedPart]:
    """Decode some parts of a plan in ``workers`` processes, by default one per processor.

    Parts come in the order in which they are finished. Only a few are decoded ahead, so a slow
    reader fills neither memory nor disk.
    """
    with tempfile.TemporaryDirectory(prefix="lensprep-parts-") as scratch:
        tasks = [_Task(number, plan.parts[number], spec, Path(scratch)) for number in numbers]
        # Processes even for one worker: it decodes while the caller uses the part before.
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
    """Decode a part; its pixels are too many to be sent, and go through a file."""
    columns, pixels, rejects = task.part.decode(task.spec)
    file = task.scratch / f"part-{task.number:06d}.npy"
    np.save(file, pixels)
    return task.number, columns, file, rejects


# --------------------------------------------------------------------------- Phase 4c trees


def plan_tree(
    uri: str | PathLike[str], split: str, survey: str | PathLike[str] = DECALS.survey
) -> Plan:
    """A split of a tree of a survey (see `load_survey`), in parts of neighbouring row groups.

    Where no folder states the split, a part may hold rows of other splits, which are left out when
    it is decoded.

    Raises
    ------
    InputError
        If the tree has no rows of the split; and whatever `Source.open` raises.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}; there are: {', '.join(SPLITS)}.")
    source = Source.open(uri, survey=load_survey(survey))
    bare = source.bare
    files = [file for file in source.files if file.split in (None, split)]
    parts = [TreePart(bare, groups, split) for groups in neighbours(files, PART_ROWS)]
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
    record, geometry = survey_record(source.survey), source.survey.geometry
    return Plan(parts, source.digest(), notes=tuple(notes), geometry=geometry, source=record)


@dataclass(frozen=True)
class TreePart:
    """Some row groups of a tree."""

    source: Source
    """Without its files, since it is sent to every process."""
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
        survey = self.source.survey
        preparer = Preparer(0, FilterRules(), Normalizer(spec, survey.geometry), survey)
        tables, pixels, rejects = [], [], [REJECT_SCHEMA.empty_table()]
        for prepared in prepare_row_groups(self.source, self.row_groups, preparer):
            ours = pc.equal(prepared.table[SPLIT_COLUMN], self.split)
            tables.append(prepared.table.filter(ours).drop_columns([PLACE]))
            pixels.append(payload_view(prepared.records, survey.geometry)[ours.to_numpy()])
            theirs = pc.equal(prepared.left_out[SPLIT_COLUMN], self.split)
            rejects.append(prepared.left_out.filter(pc.fill_null(theirs, True)))
        return pa.concat_tables(tables), np.concatenate(pixels), pa.concat_tables(rejects)


def tree_stamps(
    uri: str | PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    recorded: Mapping[str, Any] | None = None,
) -> NDArray[np.float32]:
    """Raw pixels of some rows of a tree.

    Parameters
    ----------
    uri : str or path
    rows : sequence of mapping
        ``source_file``, ``source_row_group`` and ``source_row`` of each.
    recorded : mapping, optional
        `Plan.source`, which names the survey; without it the tree is one of Phase 4c.

    Returns
    -------
    ndarray of float32, shape (n, bands, side, side)
        In the survey's unit of flux.

    Raises
    ------
    InputError
        If a row no longer exists.
    DatasetError
        If what was recorded is no survey.
    """
    geometry = recorded_survey(recorded or {}).geometry
    out = np.zeros((len(rows), *geometry.shape), np.float32)
    places = pa.table({name: [row[name] for row in rows] for name in ORIGIN_COLUMNS})
    for numbers, pixels in iter_tree_stamps(uri, places, recorded):
        out[numbers] = pixels
    return out


def iter_tree_stamps(
    uri: str | PathLike[str] | Sequence[str | PathLike[str]],
    rows: pa.Table,
    recorded: Mapping[str, Any] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Raw pixels of some rows of trees, a few at a time, each row group read once.

    Parameters
    ----------
    uri : str or path, or a sequence of them
        As those that were converted together: their last folders are in the names of the files.
    rows : pyarrow.Table
        With `ORIGIN_COLUMNS`; ``source_file`` may be dictionary-encoded.
    recorded : mapping, optional
        As of `tree_stamps`, or the ``source`` of a manifest.

    Yields
    ------
    numbers : ndarray of int64, shape (n,)
        Which of the rows these are, in the order of the trees.
    pixels : ndarray of float32, shape (n, bands, side, side)

    Raises
    ------
    InputError, DatasetError
        As `tree_stamps`.
    """
    source = Source.open(uri, survey=recorded_survey(recorded or {}))
    files = {file.path: file for file in source.files}
    if any(rows[name].null_count for name in ORIGIN_COLUMNS):
        raise InputError(f"There are rows of which it is not known where in {source.uri} they are.")
    named, *numbered = (rows[name].combine_chunks() for name in ORIGIN_COLUMNS)
    if not pa.types.is_dictionary(named.type):
        named = named.dictionary_encode()
    names = named.dictionary.to_pylist()
    for name in names:
        if name not in files:
            raise InputError(f"{source.uri} no longer has the file {name}.")
    code, group, row = (np.asarray(column, np.int64) for column in (named.indices, *numbered))
    order = np.lexsort((row, group, code))
    ends = np.flatnonzero(np.diff(code[order]) | np.diff(group[order])) + 1
    for numbers in np.split(order, ends) if len(order) else ():
        file, index = files[names[code[numbers[0]]]], int(group[numbers[0]])
        for at, pixels in _stamps_of_group(source, file, index, row[numbers]):
            yield numbers[at], pixels


def _stamps_of_group(
    source: Source, file: SourceFile, group: int, rows: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Pixels of some rows of a row group, which ascend; each with its place among them."""
    geometry = source.survey.geometry
    first = done = 0
    if 0 <= group < len(file.row_groups) and rows[0] >= 0:
        few = geometry.scaled_rows(READ_ROWS)
        tables = source.iter_row_group(file, group, [STAMP_COLUMN], batch_rows=few, careful=True)
        for table in tables:
            stop = int(np.searchsorted(rows, first + table.num_rows))
            chosen = rows[done:stop]
            if len(chosen):
                pixels = np.empty((len(chosen), *geometry.shape), np.float32)
                blobs = table[STAMP_COLUMN].take(pa.array(chosen - first))
                reasons = decode_batch(blobs, pixels, geometry.bands)
                for row, reason in zip(chosen, reasons, strict=True):
                    if reason is not None:
                        raise InputError(f"{file.path} has changed: row {row} is damaged.")
                yield slice(done, stop), pixels
            first, done = first + table.num_rows, stop
    if done < len(rows):
        raise InputError(f"{file.path} has changed: row group {group} has no row {rows[done]}.")


# --------------------------------------------------------------------------------- cutouts


def plan_cutouts(
    folder: str | PathLike[str],
    catalog: str | PathLike[str],
    columns: Mapping[str, str] | None = None,
    called: str | None = None,
    geometry: Geometry = DECALS,
) -> Plan:
    """A folder of cutouts with its catalogue, in parts of neighbouring rows.

    Parameters and errors are those of `lensprep.source.cutouts.open_cutouts`. The digest covers the
    rows and the size of every file.
    """
    found = open_cutouts(folder, catalog, read_position, columns, called, geometry)
    digest = hashlib.sha256()
    for row in found.table.to_pylist():
        sizes = []
        for name in split_name(row["file"], geometry.bands)[0] if row["file"] else ():
            size = None
            with suppress(OSError):  # a broken link becomes the row's reject
                size = (found.folder / name).stat().st_size
            sizes.append(size)
        digest.update(json.dumps([row, *(sizes or [None])], default=str).encode())
    rows = pa.array(np.arange(found.table.num_rows))
    # Taken, not sliced: a slice would be sent to a process with the whole table.
    parts = [
        CutoutPart(found.folder, found.table.take(rows.slice(first, PART_ROWS)), first, geometry)
        for first in range(0, found.table.num_rows, PART_ROWS)
    ]
    return Plan(parts, digest.hexdigest(), found.unused, geometry=geometry)


@dataclass(frozen=True)
class CutoutPart:
    """Some rows of the catalogue of a folder of cutouts."""

    folder: Path
    table: pa.Table
    first: int
    """Number of the first row in the catalogue."""
    geometry: Geometry = DECALS

    def __str__(self) -> str:
        return f"rows {self.first + 1} to {self.first + self.rows} of the catalogue"

    @property
    def rows(self) -> int:
        """Rows, including those without a file."""
        return int(self.table.num_rows)

    def decode(self, spec: NormalizationSpec) -> Decoded:
        """Decode and normalise the files of the rows."""
        raw = np.zeros((self.rows, *self.geometry.shape), np.float32)
        files, misses = (self.table[name].to_pylist() for name in ("file", NO_CUTOUT))
        refusals = [
            Refusal(NO_CUTOUT, miss)
            if file is None
            else read_cutout(self.folder / file, pixels, self.geometry)
            for file, miss, pixels in zip(files, misses, raw, strict=True)
        ]
        good = np.array([row for row in range(self.rows) if refusals[row] is None], int)
        raw = np.ascontiguousarray(raw[good])
        stored = np.empty(raw.shape, STAMP_DTYPE)
        measured = Normalizer(spec, self.geometry)(raw, stored)
        for row in good[measured.constant]:
            refusals[row] = Refusal(RejectReason.CONSTANT_BAND, "a band has no scatter")
        sound = np.flatnonzero(~measured.constant)
        columns = self._columns(good[sound])
        columns |= measured_columns([measured.take(sound)], self.geometry)
        hashes = [xxhash.xxh3_128_hexdigest(stamp) for stamp in raw[sound]]
        columns["pixel_hash"] = pa.array(hashes, pa.string())
        return pa.table(columns), stored[sound], self._rejects(refusals)

    def _columns(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Scalar columns; those of a score table that the catalogue lacks are null."""
        taken = self.table.take(pa.array(rows))
        ours = "payload_crc32", "pixel_hash", "pixels", NO_CUTOUT, "file", "split", "logit"
        own = {*self.geometry.band_columns(*MEASURED), *ours}
        columns = {name: taken[name] for name in taken.column_names if name not in own}
        empty = {"label": pa.int8(), "region_id": pa.int32(), "task_id": pa.string()}
        for name, kind in empty.items():
            if name not in columns:
                columns[name] = pa.nulls(len(rows), kind)
        try:
            columns["label"] = columns["label"].cast(pa.int8())
        except pa.ArrowException:
            kind = columns["label"].type
            raise InputError(
                f"The catalogue's label holds {kind}, not 0 and 1. Write 1 for lenses and 0 for "
                "others, or give the column another name."
            ) from None
        columns["source_file"] = taken["file"]
        columns["source_row_group"] = pa.array(np.zeros(len(rows), np.int32))
        columns["source_row"] = pa.array(rows + self.first)
        return columns

    def _rejects(self, refusals: Sequence[Refusal | None]) -> pa.Table:
        """Rows that have no stamp: as in ``rejects.parquet``, with what was found."""
        rows = np.array([row for row in range(self.rows) if refusals[row] is not None], int)
        found = [refusal for refusal in refusals if refusal is not None]
        taken = self.table.take(pa.array(rows))
        known = {
            "task_id": taken["key"],
            "kind": ["rejected"] * len(rows),
            "reason": [str(refusal.reason) for refusal in found],
            "source_file": taken["file"],
            "source_row": rows + self.first,
        }
        detail = pa.array([refusal.detail for refusal in found], pa.string())
        return reject_table(len(rows), known).append_column("detail", detail)


def cutout_files(names: Sequence[str | None], geometry: Geometry = DECALS) -> set[str]:
    """Files that the names of some cutouts stand for."""
    return {file for name in names if name for file in split_name(name, geometry.bands)[0]}


def cutout_stamps(
    folder: str | PathLike[str], names: Sequence[str | None], geometry: Geometry = DECALS
) -> NDArray[np.float32]:
    """Raw pixels of some cutouts; the user's links are followed.

    Returns
    -------
    ndarray of float32, shape (n, *geometry.shape)
        In the survey's unit of flux.

    Raises
    ------
    InputError
        If a name leads out of the folder, or a file can no longer be read.
    """
    for file in map(Path, cutout_files(names, geometry)):
        if file.is_absolute() or ".." in file.parts:
            raise InputError(f"{file} lies outside {folder}.")
    out = np.zeros((len(names), *geometry.shape), np.float32)
    for pixels, name in zip(out, names, strict=True):
        refusal = read_cutout(Path(folder) / str(name), pixels, geometry)
        if refusal is not None:
            raise InputError(
                f"{Path(folder) / str(name)} can no longer be read ({refusal.reason}: "
                f"{refusal.detail})."
            )
    return out
