"""Catalogues of cutouts in a conversion: regions, splits and overlaps, and then one source.

    source, sky = join_catalogs(trees, uris, config, ...)

Before the first stamp is read, the positions of trees are read once. Each row of a catalogue gets
the region and the split of the trees around it, so that a dataset never has the same sky in two
splits; where it still would, it is an error, or the row of the catalogue is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.convert.config import ConvertConfig, CutoutConfig
from lensprep.dataset.geometry import Geometry
from lensprep.dataset.layout import SPLITS
from lensprep.decode.cutoutfile import read_catalog_cutout, read_position
from lensprep.decode.rowgroup import READ_ROWS
from lensprep.decode.stampnpz import decode_batch
from lensprep.errors import InputError
from lensprep.source.catalog import Catalog, CutoutSource, open_catalogs
from lensprep.source.contract import OVERLAP
from lensprep.source.footers import SourceFile
from lensprep.source.listing import Location
from lensprep.source.overlap import (
    LIGHT_COLUMNS,
    PAIR_COLUMNS,
    SAME_ARCSEC,
    Pair,
    TreeScan,
    choose_regions,
    choose_splits,
    groups,
    neighbours,
)
from lensprep.source.survey import LABEL_COLUMN, SPLIT_COLUMN, STAMP_COLUMN
from lensprep.source.tree import Source
from lensprep.store import S3Options

_log = logging.getLogger("lensprep.convert")

_LISTED: Final = 20
"""Pairs listed in the manifest."""
_SHOWN: Final = 3
"""Pairs listed in a message."""


@dataclass(frozen=True, slots=True)
class Sky:
    """What catalogues and trees have in common."""

    facts: dict[str, Any]
    """For manifest and report: ``catalogs``, ``overlaps_dropped``, ``same_objects``."""


def join_catalogs(
    trees: Source | None,
    uris: Sequence[Location],
    uri: str,
    config: ConvertConfig,
    options: S3Options,
) -> tuple[CutoutSource, Sky]:
    """Open catalogues, give their rows regions and splits, and join them with the trees.

    Raises
    ------
    InputError
        If a catalogue cannot be used; a region is in two splits; or a cutout and a stamp of
        another split share sky, and ``drop_overlap`` is not set.
    """
    cutouts, survey = config.cutouts or CutoutConfig(), config.survey
    geometry = survey.geometry
    catalogs = open_catalogs(
        uris,
        cutouts.folders,
        read_position,
        survey=survey,
        columns=dict(cutouts.columns),
        grade_lens=cutouts.grade_lens,
        drop_columns=config.drop_columns or (),
        options=options,
    )
    rows = _Rows(catalogs)
    if not len(rows.ra):
        raise InputError(f"{uri}: no catalogue has rows.")
    scan = TreeScan(rows.ra, rows.dec, geometry.diagonal_arcsec)
    if trees is not None:
        names = CutoutSource.of(trees, [], uri, survey)
        for file in trees.files:
            _scan_file(trees, file, names.name_of(file), scan, config.skip_bad_files)
    near = neighbours(rows.ra, rows.dec, geometry.diagonal_arcsec)
    region = _regions(rows, scan, near)
    split, contradictions = choose_splits(
        region, rows.split, scan, cutouts.fractions or survey.fractions
    )
    if contradictions:
        raise _contradiction(rows, region, contradictions)
    usable = np.array([reason == "" for reason in rows.reason])
    pairs = [p for p in (*scan.pairs, *_own_pairs(rows, near, split)) if usable[p.row]]
    pairs = [p for p in pairs if p.other_row < 0 or usable[p.other_row]]
    leaks = [pair for pair in pairs if pair.split != split[pair.row]]
    dropped = _dropped(leaks, split)
    if leaks and not cutouts.drop_overlap:
        raise _overlap(rows, leaks, split, geometry)
    for row in dropped:
        rows.reason[row] = OVERLAP
    same = [pair for pair in pairs if pair.arcsec < SAME_ARCSEC]
    facts = _facts(rows, same, split, _identical(trees, rows, same, geometry, options), dropped)
    joined = CutoutSource.of(
        trees, rows.placed(region, split), uri, survey, config.drop_columns or (), options
    )
    return joined, Sky(facts)


class _Rows:
    """The rows of all catalogues behind each other."""

    def __init__(self, catalogs: Sequence[Catalog]) -> None:
        self.catalogs = catalogs
        self.starts = np.cumsum([0, *(one.table.num_rows for one in catalogs)])
        self.ra, self.dec = (
            np.concatenate([one.table[c].to_numpy() for one in catalogs]) for c in ("ra", "dec")
        )
        self.task = self._joined("task_id")
        self.region: list[int | None] = self._joined("region_id")
        self.split: list[str | None] = self._joined(SPLIT_COLUMN)
        self.label = np.concatenate([one.facts["label"].to_numpy() for one in catalogs])
        self.reason = [r for one in catalogs for r in one.facts["reason"].to_pylist()]

    def _joined(self, column: str) -> list[Any]:
        return [value for one in self.catalogs for value in one.table[column].to_pylist()]

    def place(self, row: int) -> tuple[Catalog, int]:
        """Catalogue of a row, and its number there."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.catalogs[number], row - int(self.starts[number])

    def name(self, row: int) -> str:
        """How messages call it."""
        return f"{self.place(row)[0].path}, {self.task[row]}"

    def placed(self, region: NDArray[np.int64], split: list[str]) -> list[Catalog]:
        """The catalogues with regions, splits and reasons filled in."""
        found = []
        for one, start, stop in zip(self.catalogs, self.starts, self.starts[1:], strict=False):
            table, facts = one.table, one.facts
            for name, values in (
                ("region_id", pa.array(region[start:stop].astype(np.int32))),
                (SPLIT_COLUMN, pa.array(split[start:stop], pa.string())),
            ):
                table = table.set_column(table.schema.get_field_index(name), name, values)
            reason = pa.array(self.reason[start:stop], pa.string())
            facts = facts.set_column(facts.schema.get_field_index("reason"), "reason", reason)
            found.append(replace(one, table=table, facts=facts))
        return found


def _scan_file(
    trees: Source, file: SourceFile, name: str, scan: TreeScan, skip_bad_files: bool
) -> None:
    """Look at the rows of one file of a tree."""
    for group, _ in file.filled:
        read = partial(_read, trees, file, group)
        try:
            hits = scan.add(read(LIGHT_COLUMNS))
            if not hits:
                continue
            rows = sorted({row for _, row, _ in hits})
            wanted = [c for c in (*PAIR_COLUMNS, SPLIT_COLUMN) if c in trees.schema.names]
            known = read(wanted).take(pa.array(rows)).to_pylist()
        except InputError:
            if not skip_bad_files:
                raise
            continue
        details = dict(zip(rows, known, strict=True))
        for own, row, arcsec in hits:
            what = details[row]
            if what.get("cutout_ok", 1) != 1:  # it has no stamp
                continue
            label = trees.survey.label_map.get(what[LABEL_COLUMN] or "", -1)
            pair = Pair(own, arcsec, what["task_id"] or "", name, what[SPLIT_COLUMN],
                        label, at=(file, group, row))  # fmt: skip
            scan.add_pair(pair)


def _read(trees: Source, file: SourceFile, group: int, columns: Sequence[str]) -> pa.Table:
    rows = max(1, file.row_groups[group].rows)
    return pa.concat_tables(trees.iter_row_group(file, group, columns, batch_rows=rows))


def _regions(
    rows: _Rows, scan: TreeScan, near: Sequence[tuple[int, int, float]]
) -> NDArray[np.int64]:
    """The catalogue's own regions; those of trees around; cells."""
    region = choose_regions(scan, groups(len(rows.ra), near))
    if scan.is_foreign and (region < 0).any():
        raise InputError(
            "A tree has negative region_ids, which stand for cells of the sky where a catalogue "
            "has no region_id. Add a column region_id (and region_split) to the catalogue."
        )
    own = [-1 if found is None else found for found in rows.region]
    return np.where([found is not None for found in rows.region], own, region)


def _contradiction(
    rows: _Rows, region: NDArray[np.int64], found: Sequence[tuple[int, set[str]]]
) -> InputError:
    number, splits = found[0]
    row = int(np.flatnonzero(region == number)[0])
    more = f" ({len(found)} regions are)" if len(found) > 1 else ""
    return InputError(
        f"{rows.name(row)}: its region {number} is in {' and in '.join(sorted(splits))}{more}. A "
        "region is in one split, whatever source it comes from: correct region_id or "
        f"{SPLIT_COLUMN}, or leave both out of the catalogue for those of the trees around."
    )


def _own_pairs(
    rows: _Rows, near: Sequence[tuple[int, int, float]], split: list[str]
) -> Iterator[Pair]:
    """Neighbours among the rows of catalogues, each seen from the row that would be left out."""
    for i, j, arcsec in near:
        # Rows for training go first; of equal ones the order of their ids decides.
        own, other = sorted((i, j), key=lambda row: (SPLITS.index(split[row]), rows.task[row]))
        where = rows.place(other)[0].path
        yield Pair(own, arcsec, rows.task[other], where, split[other],
                   int(rows.label[other]), other_row=other)  # fmt: skip


def _dropped(leaks: Sequence[Pair], split: list[str]) -> list[int]:
    """Rows to leave out: those beside trees; of pairs in catalogues that remain one each."""
    dropped = {pair.row for pair in leaks if pair.other_row < 0}
    return sorted(
        dropped
        | {pair.row for pair in leaks if pair.other_row >= 0 and pair.other_row not in dropped}
    )


def _overlap(
    rows: _Rows, leaks: Sequence[Pair], split: list[str], geometry: Geometry
) -> InputError:
    first = "; ".join(
        f"{rows.name(pair.row)} in {split[pair.row]} is {pair.arcsec:.1f} arcsec from "
        f"{pair.where}, {pair.other} in {pair.split}"
        for pair in sorted(leaks, key=lambda pair: (pair.arcsec, rows.task[pair.row]))[:_SHOWN]
    )
    return InputError(
        f"{len({pair.row for pair in leaks}):,} cutouts share sky with a stamp of another split "
        f"(nearer than a stamp's diagonal, {geometry.diagonal_arcsec:.1f} arcsec): {first}. Leave "
        f"them out with --drop-overlap, or correct {SPLIT_COLUMN} in the catalogue."
    )


def _identical(
    trees: Source | None,
    rows: _Rows,
    same: Sequence[Pair],
    geometry: Geometry,
    options: S3Options,
) -> list[bool]:
    """Which pairs have the same pixels; only these stamps are decoded."""

    def cutout(row: int) -> NDArray[np.float32] | None:
        catalog, number = rows.place(row)
        pixels = np.empty(geometry.shape, np.float32)
        file = catalog.facts["file"][number].as_py()
        refusal = read_catalog_cutout(catalog.folder, file, pixels, geometry, options)
        return None if refusal else pixels

    found = [False] * len(same)
    in_groups: dict[tuple[str, int], list[int]] = {}
    for number, pair in enumerate(same):
        if pair.at is not None:
            in_groups.setdefault((pair.at[0].path, pair.at[1]), []).append(number)
        else:
            one, other = cutout(pair.row), cutout(pair.other_row)
            found[number] = one is not None and other is not None and np.array_equal(one, other)
    for numbers in in_groups.values():
        places = {number: at for number in numbers if (at := same[number].at) is not None}
        file, group, _ = places[numbers[0]]
        assert trees is not None
        stamps = _stamps(trees, file, group, {at[2] for at in places.values()}, geometry)
        for number, at in places.items():
            stamp, own = stamps.get(at[2]), cutout(same[number].row)
            found[number] = stamp is not None and own is not None and np.array_equal(stamp, own)
    return found


def _stamps(
    trees: Source, file: SourceFile, group: int, wanted: set[int], geometry: Geometry
) -> dict[int, NDArray[np.float32]]:
    """Pixels of some rows of a row group."""
    first, found = 0, {}
    for table in trees.iter_row_group(file, group, [STAMP_COLUMN], batch_rows=READ_ROWS):
        rows = [row - first for row in sorted(wanted) if first <= row < first + table.num_rows]
        if rows:
            pixels = np.empty((len(rows), *geometry.shape), np.float32)
            blobs = table[STAMP_COLUMN].take(pa.array(rows))
            rejects = decode_batch(blobs, pixels, geometry.bands)
            for row, stamp, reject in zip(rows, pixels, rejects, strict=True):
                if reject is None:
                    found[first + row] = stamp
        first += table.num_rows
    return found


def _facts(
    rows: _Rows,
    same: Sequence[Pair],
    split: list[str],
    identical: Sequence[bool],
    dropped: Sequence[int],
) -> dict[str, Any]:
    """What the manifest says; contradictions are warned of, since both rows may be trained on."""
    listed = [
        {
            "source": rows.place(pair.row)[0].path,
            "task_id": rows.task[pair.row],
            "label": int(rows.label[pair.row]),
            "other_source": pair.where,
            "other_task_id": pair.other,
            "other_label": pair.label,
            "arcsec": round(pair.arcsec, 3),
            "identical_pixels": bool(equal),
        }
        for pair, equal in zip(same, identical, strict=True)
    ]
    against = [p for p in listed if {p["label"], p["other_label"]} == {0, 1}]
    if against:
        first = "; ".join(
            f"{p['task_id']} ({p['label']}) and {p['other_task_id']} of {p['other_source']} "
            f"({p['other_label']})"
            for p in against[:_SHOWN]
        )
        _log.warning(
            "%d pairs of rows are one object with two labels: %s. Leave one of each out, with "
            "--where or in the catalogue.",
            len(against),
            first,
        )
    catalogs = {
        one.path: {"rows": one.table.num_rows, "uri": one.uri, "unused_files": one.unused}
        for one in rows.catalogs
    }
    return {
        "catalogs": catalogs,
        "overlaps_dropped": len(dropped),
        "same_objects": {
            "pairs": len(listed),
            "identical_pixels": sum(identical),
            "contradicting_labels": len(against),
            "listed": [*against, *(p for p in listed if p not in against)][:_LISTED],
        },
    }
