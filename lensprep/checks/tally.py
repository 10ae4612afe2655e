"""What `lensprep check` gathers from the rows of a source: counts that add up in any order.

Findings are drawn from a `Tally` of one table (`tally_rows`) or of many (`Tally.merge`) alone, so
that thousands of files can be read by many workers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.checks.finding import Finding, leaking
from lensprep.dataset.geometry import Geometry
from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK
from lensprep.decode.account import row_classes
from lensprep.decode.reasons import RejectReason
from lensprep.decode.robust import median_mad
from lensprep.decode.stampnpz import decode_batch
from lensprep.source.contract import filter_rows, label_rows, numbers
from lensprep.source.survey import (
    DECALS_SURVEY,
    SEEING_COLUMN,
    SPLIT_COLUMN,
    STAMP_COLUMN,
    Column,
    Survey,
)
from lensprep.source.tree import Source
from lensprep.tables.positions import on_sky

BAD_PIXEL_LIMIT: Final = 0.2
"""``bad_pixel_frac`` above which a stamp counts as damaged (10 % of injections upstream)."""

RESOLVED_RATIO: Final = 0.5
"""theta_E over PSF FWHM (``psfsize_r``) below which a lens looks like a blur."""

_BATCH: Final = 256
"""Stamps decoded at once, `Geometry.scaled_rows`: 12 MB of pixels."""


_lists: Callable[[], Any] = partial(defaultdict, list)


@dataclass(slots=True)
class Tally:
    """Counts over rows; tallies add up with `merge`, in any order."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by (split, class)."""
    regions: set[tuple[int, str]] = field(default_factory=set)
    """Pairs (region_id, split) that occur."""
    bricks: set[tuple[str, str]] = field(default_factory=set)
    """Pairs (brickname, split) that occur."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Rows that conversion would always leave out, by reason."""
    label_faults: Counter[str] = field(default_factory=Counter)
    """Rows without a usable label, by reason."""
    nulls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Nulls by (column, class)."""
    control_faults: Counter[str] = field(default_factory=Counter)
    """Controls that hold a value where the contract wants zero or null, by column."""
    out_of_range: Counter[str] = field(default_factory=Counter)
    """Values outside the contract's range, or NaN, by column; filtered rows do not count."""
    resolution: Counter[tuple[float, bool]] = field(default_factory=Counter)
    """Lenses by (theta_e_arcsec, whether theta_E / psfsize_r reaches RESOLVED_RATIO)."""
    quality: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by (``bad_pixels``, ``no_magnification``, ..., class)."""
    positions: dict[tuple[str, str], list[NDArray[np.float64]]] = field(default_factory=_lists)
    """Distinct (ra, dec) in degrees by (split, class), arrays of shape (n, 2)."""
    task_ids: dict[str, list[NDArray[np.uint64]]] = field(default_factory=_lists)
    """Hashes of task_id by split."""
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Counterfactuals by (split, kind)."""
    families: dict[tuple[str, str], list[NDArray[np.uint64]]] = field(default_factory=_lists)
    """Where there are counterfactuals: hashes that name the controls, hosts (both with their
    region), lenses and donors, by (``control``, ``host``, ``lens`` or ``donor``, split)."""
    images: dict[tuple[str, str], list[NDArray[np.uint64]]] = field(default_factory=_lists)
    """Hashes of decoded pixels by (split, class), where pixels were asked for."""
    undecoded: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Rows by (reason, split, class) whose blob gave no stamp, where pixels were asked for."""
    samples: list[pa.Table] = field(default_factory=list)
    """Some rows of `sampled_columns`, with ``label``."""
    unread: list[tuple[str, int, str]] = field(default_factory=list)
    """Row groups that could not be read: (file, rows, reason)."""
    misfits: list[str] = field(default_factory=list)
    """For each row group with a value that does not fit the contract's type: what was found."""

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, list):
                mine.extend(theirs)
            elif isinstance(mine, defaultdict):
                for key, arrays in theirs.items():
                    mine[key].extend(arrays)
            else:
                mine.update(theirs)

    def classes(self, split: str | None = None) -> dict[str, int]:
        """Rows by class, of one split or of all, without counterfactuals."""
        counts = Counter[str]()
        for (name, label), rows in self.rows.items():
            if label != COUNTERFACTUAL and split in (None, name):
                counts[label] += rows
        return dict(sorted(counts.items()))

    def splits(self) -> dict[str, int]:
        """Rows by split, without counterfactuals, in the order train, val, test, then others."""
        counts = Counter[str]()
        for (name, label), rows in self.rows.items():
            if label != COUNTERFACTUAL:
                counts[name] += rows
        order = {"train": 0, "val": 1, "test": 2}
        return dict(sorted(counts.items(), key=lambda item: (order.get(item[0], 3), item[0])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What findings need to know besides the rows."""

    source: Source
    pixels: bool
    """Whether stamps were decoded."""
    declared: Mapping[str, float] | None
    """Split fractions that the user expects."""


Finder = Callable[[Tally, Circumstances], Finding]
"""Draws one finding."""


def sampled_columns(schema: pa.Schema) -> list[str]:
    """Columns of plain values that the contract does not say to reveal the label, but that may."""
    known = {*leaking(schema.names), SPLIT_COLUMN, STAMP_COLUMN, "task_id"}
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    return [f.name for f in schema if f.name not in known and any(of(f.type) for of in plain)]


def tally_rows(
    table: pa.Table,
    *,
    sample_step: int = 1,
    pixels: bool = False,
    survey: Survey = DECALS_SURVEY,
) -> Tally:
    """Count one table of source rows.

    Parameters
    ----------
    table : pyarrow.Table
        Rows in a source's unified schema; ``stamp_npz`` is needed only for ``pixels``.
    sample_step : int
        Keep one labelled row in this many in ``samples``.
    pixels : bool
        Decode the stamps, hash them and count those that cannot be decoded.
    survey : Survey
    """
    tally = Tally()
    label, label_reason = label_rows(table, survey)
    classes = row_classes(table, label)
    made = classes == COUNTERFACTUAL
    splits = _text(table[SPLIT_COLUMN])
    reasons = filter_rows(table, survey=survey)
    kept = reasons == ""
    tally.filtered.update(reasons[~kept].tolist())
    tally.label_faults.update(label_reason[kept & (label_reason != "")].tolist())
    tally.rows.update(zip(splits.tolist(), classes.tolist(), strict=True))
    for name, pairs in (("region_id", tally.regions), ("brickname", tally.bricks)):
        if name not in table.column_names:
            continue
        known = table[name].is_valid().to_numpy()
        pairs.update(zip(table[name].drop_null().to_pylist(), splits[known].tolist(), strict=True))
    for column in survey.contract:
        if column.name in table.column_names and column.name != STAMP_COLUMN:
            _tally_column(tally, table[column.name], column, label, kept)
    _tally_nulls(tally, table, classes)
    _tally_quality(tally, table, classes)
    _tally_sky(tally, table, splits, classes)
    _tally_task_ids(tally, table, splits)
    if COUNTERFACTUAL in table.column_names:
        tally.kinds.update(
            zip(splits[made].tolist(), _text(table[COUNTERFACTUAL])[made].tolist(), strict=True)
        )
        _tally_families(tally, table, splits, classes)
    chosen = pa.array(np.flatnonzero((label >= 0) & ~made)[::sample_step])
    sample = table.select(sampled_columns(table.schema)).take(chosen)
    tally.samples.append(sample.append_column("label", pa.array(label).take(chosen)))
    if pixels:
        rows = np.flatnonzero(kept & (label_reason == ""))
        _tally_pixels(tally, table[STAMP_COLUMN], rows, splits, classes, survey.geometry)
    return tally


def _tally_column(
    tally: Tally,
    values: pa.ChunkedArray,
    column: Column,
    label: NDArray[np.int8],
    kept: NDArray[np.bool_],
) -> None:
    """Ranges, and what controls hold."""
    valid = values.is_valid().to_numpy()
    if column.controls != "value":
        wrong = valid & (label == 0)  # null is as good as zero
        if column.controls == "zero":
            wrong &= numbers(values) != 0
        tally.control_faults[column.name] += int(np.count_nonzero(wrong))
    if column.minimum is not None or column.maximum is not None:
        real = numbers(values)
        low = -np.inf if column.minimum is None else column.minimum
        high = np.inf if column.maximum is None else column.maximum
        outside = ~((real >= low) & (real <= high)) & valid & kept
        tally.out_of_range[column.name] += int(np.count_nonzero(outside))


def _tally_nulls(tally: Tally, table: pa.Table, classes: NDArray[np.str_]) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            for label, count in Counter(classes[column.is_null().to_numpy()].tolist()).items():
                tally.nulls[name, label] += count


def _tally_quality(tally: Tally, table: pa.Table, classes: NDArray[np.str_]) -> None:
    """Lenses that cannot be resolved or were not magnified, and damaged stamps."""
    lens = classes == "1"
    theta_e, psf = (_known(table, name) for name in ("theta_e_arcsec", SEEING_COLUMN))
    with np.errstate(divide="ignore", invalid="ignore"):
        resolved = theta_e / psf >= RESOLVED_RATIO
    known = lens & (psf > 0) & np.isfinite(theta_e)
    radii = np.round(theta_e[known], 3).tolist()
    tally.resolution.update(zip(radii, resolved[known].tolist(), strict=True))
    cuts = {
        "bad_pixels": _known(table, "bad_pixel_frac") > BAD_PIXEL_LIMIT,
        "no_magnification": _known(table, "magnification") < 1,
    }
    for name, cut in cuts.items():
        tally.quality.update((name, label) for label in classes[cut].tolist())


def _known(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Numbers of a column; NaN where it is null or not there at all."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return numbers(table[name])


def _tally_sky(
    tally: Tally, table: pa.Table, splits: NDArray[np.str_], classes: NDArray[np.str_]
) -> None:
    ra, dec = numbers(table["ra"]), numbers(table["dec"])
    known = on_sky(ra, dec)  # those off the sky are counted as out of range
    sky = np.stack([ra % 360, dec], axis=1)
    for key in set(zip(splits.tolist(), classes.tolist(), strict=True)):
        here = known & (splits == key[0]) & (classes == key[1])
        tally.positions[key].append(np.unique(sky[here], axis=0))


def _tally_task_ids(tally: Tally, table: pa.Table, splits: NDArray[np.str_]) -> None:
    for split in set(splits.tolist()):
        tally.task_ids[split].append(_hashes(table["task_id"], splits == split))


def _tally_families(
    tally: Tally, table: pa.Table, splits: NDArray[np.str_], classes: NDArray[np.str_]
) -> None:
    """Who may be host or donor, and who is named as one."""
    region = table["region_id"].cast(pa.string())
    for what, column, label in (
        ("control", "task_id", "0"),
        ("host", HOST_TASK, COUNTERFACTUAL),
        ("lens", "task_id", "1"),
        ("donor", DONOR_TASK, COUNTERFACTUAL),
    ):
        if column not in table.column_names:
            continue  # conversion rejects such counterfactuals
        names = table[column].cast(pa.string())
        if what in ("control", "host"):
            names = pc.binary_join_element_wise(region, names, "/")
        for split in set(splits.tolist()):
            chosen = (splits == split) & (classes == label)
            tally.families[what, split].append(_hashes(names, chosen))


def _hashes(texts: pa.ChunkedArray, chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Hashes of the chosen texts that are not null."""
    known = texts.filter(pa.array(chosen)).drop_null().cast(pa.binary()).to_pylist()
    return np.array([xxhash.xxh3_64_intdigest(text) for text in known], np.uint64)


def _tally_pixels(
    tally: Tally,
    blobs: pa.ChunkedArray,
    rows: NDArray[np.intp],
    splits: NDArray[np.str_],
    classes: NDArray[np.str_],
    geometry: Geometry,
) -> None:
    """Decode the stamps of some rows: hash each, or count why conversion would reject it."""
    batch = geometry.scaled_rows(_BATCH)
    out = np.zeros((batch, *geometry.shape), np.float32)
    hashes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        reasons = decode_batch(blobs.take(pa.array(part)), out[: len(part)], geometry.bands)
        for stamp, reason in zip(out, reasons, strict=False):
            if reason is not None:
                stamp[:] = 0  # a failed blob may have left NaN there
        constant = (median_mad(out[: len(part)]).mad == 0).any(axis=1)
        for row, stamp, reason, is_constant in zip(part, out, reasons, constant, strict=False):
            key = (str(splits[row]), str(classes[row]))
            if reason is None and not is_constant:
                hashes[key].append(xxhash.xxh3_64_intdigest(stamp.data))
            else:
                tally.undecoded[(reason or RejectReason.CONSTANT_BAND).value, *key] += 1
    for key, values in hashes.items():
        tally.images[key].append(np.array(values, np.uint64))


def _text(values: pa.ChunkedArray) -> NDArray[np.str_]:
    """Text with "none" for null."""
    return np.array(pc.fill_null(values, "none").to_pylist(), np.str_)
