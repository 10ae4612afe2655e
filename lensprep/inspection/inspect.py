"""`lensprep inspect`: what is in a dataset, or in one shard of it.

    inspection = inspect_dataset(location, split=None, sample=None)   -> Inspection
    inspection.to_dict()                                              one JSON object
    render_text(inspection)                                           for a terminal (rich)

A location is a dataset, a shard of one, or a tar alone. Counts come from the manifest. Statistics
come from all rows, or, for large datasets, from as many whole shards as hold `STATISTICS_ROWS`:
conversion makes every shard a random sample of its split.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset import layout
from lensprep.dataset.geometry import Geometry
from lensprep.dataset.record import payload_crc32, payload_view, record_json, record_key
from lensprep.dataset.sidecar import count_kinds, is_counterfactual, join_tables, read_origins
from lensprep.dataset.strictjson import plain
from lensprep.errors import DatasetError, ShardError
from lensprep.inspection.target import OpenShard, Target, open_target, table_numbers
from lensprep.store import S3Options
from lensprep.tables.positions import on_sky

STATISTICS_ROWS: Final = 100_000
"""Statistics are taken from whole shards of each split until they hold this many rows."""
PIXEL_ROWS: Final = 256
"""Stamps of each split whose pixels are read for the pixel statistics; fewer if they are large."""
HISTOGRAM_BINS: Final = 24

_DESCRIBED: Final = (
    "theta_e_arcsec",
    "src_dmag",
    "src_reff_arcsec",
    "arc_snr",
    "magnification",
    "psfsize_r",
    "psfdepth_r",
    "ebv",
    "bad_pixel_frac",
    "wise_brightmask_frac",
)
"""Columns that are described, where they are there, besides those of each band."""
_HISTOGRAMS: Final = ("theta_e_arcsec", "psfsize_r", "psfdepth_r", "arc_snr", "bad_pixel_frac")
"""Columns with a histogram, besides those of the reference band."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found; every field holds plain types."""

    kind: str
    """``dataset``, ``shard`` (of a dataset) or ``tar`` (alone, without manifest)."""
    location: str
    dataset_id: str | None
    manifest: dict[str, Any]
    """All but its splits: format version, normalisation, source, account, versions, ..."""
    geometry: dict[str, Any]
    survey: str | None
    """Name of the survey; None of a tar alone, which does not say."""
    splits: dict[str, dict[str, Any]]
    """By split: rows, classes, regions, shards, bytes, statistics_rows (how many were read) and, if
    there are any, counterfactuals by kind, which rows and classes count too."""
    sky: dict[str, dict[str, Any]]
    """By split: right ascension and declination that it spans, degrees; bricks, regions."""
    models: dict[str, int]
    """Rows read, by ``lens_model``. Counterfactuals are not among them, nor in ``statistics`` and
    ``histograms``: none of them is an independent image."""
    sources: dict[str, dict[str, int]]
    """Rows read, like ``models``, by the values of ``origin``, ``kind`` and ``grade``, where the
    sidecars have these columns."""
    statistics: dict[str, dict[str, dict[str, float | int]]]
    """By column and class ("0", "1"): n, nulls, min, p5, median, p95, max."""
    histograms: dict[str, dict[str, Any]]
    """By column: ``edges`` (of ``bins`` + 1) and counts by class."""
    pixels: dict[str, dict[str, float]]
    """By band, of finite stored values: mean, std, min, median, max, the fraction at the clip; and
    ``not_finite``, the fraction of values that are not finite, if there are any."""
    record: dict[str, Any] | None
    """One record in full, if it was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def inspect_dataset(
    location: str | os.PathLike[str],
    *,
    split: str | None = None,
    sample: int | None = None,
    options: S3Options | None = None,
) -> Inspection:
    """Look at a dataset, at one shard, or at a tar alone.

    Parameters
    ----------
    location : str or path
        Folder of a dataset, or a ``.tar`` of one.
    split : str, optional
        Only this split of a dataset.
    sample : int, optional
        Show this record in full: its position in the split (in the first one, if ``split`` is
        not given) or in the shard.
    options : S3Options, optional
        How to reach an object store.

    Raises
    ------
    DatasetError, ShardError
        If there is no such dataset, split, shard or record, or it is damaged.
    """
    target = open_target(location, split, options)
    read = [shard for name in target.splits for shard in _read_shards(target, name)]
    tables = {
        name: _joined([shard.sidecar for shard in read if shard.split == name])
        for name in target.splits
    }
    every = _independent(_joined([shard.sidecar for shard in read]))
    manifest = target.dataset.manifest if target.dataset is not None else None
    return Inspection(
        kind=target.kind,
        location=str(location),
        dataset_id=manifest.dataset_id if manifest else None,
        manifest=manifest.facts() if manifest else {},
        geometry=target.geometry.record_dict(),
        survey=manifest.geometry.survey if manifest else None,
        splits={name: _split_facts(target, name, tables[name]) for name in target.splits},
        sky={name: _sky(table) for name, table in tables.items()},
        models=_value_counts(every, "lens_model"),
        sources=_sources(every),
        statistics=_statistics(every, target.geometry),
        histograms=_histograms(every, target.geometry),
        pixels=_pixel_statistics(
            read, target.geometry, manifest.normalization.clip if manifest else None
        ),
        record=None if sample is None else _record(target, sample),
    )


def _read_shards(target: Target, split: str) -> Iterator[OpenShard]:
    """Whole shards of a split, until they hold enough rows."""
    rows = 0
    for shard in target.open_shards(split):
        yield shard
        rows += shard.rows
        if rows >= STATISTICS_ROWS:
            return


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        return pa.table({})
    return join_tables(tables, "The sidecars", promote_options="default")


def _independent(table: pa.Table) -> pa.Table:
    """The rows that are no counterfactuals."""
    return table.filter(pa.array(~is_counterfactual(table)))


def _split_facts(target: Target, name: str, table: pa.Table) -> dict[str, Any]:
    """Counts of a split: from the manifest, or, for a shard, from its rows."""
    if target.kind == "dataset" and target.dataset is not None:
        info = target.dataset.split(name)
        return {
            "rows": info.rows,
            "classes": dict(info.classes),
            "regions": info.regions,
            "shards": len(info.shards),
            "bytes": sum(shard.bytes for shard in info.shards),
            "statistics_rows": table.num_rows,
            **({"counterfactuals": kinds} if (kinds := info.counterfactuals) else {}),
        }
    return {
        "rows": table.num_rows,
        "classes": _value_counts(table, "label"),
        "regions": len(_value_counts(table, "region_id")),
        "shards": 1,
        "bytes": target.geometry.shard_bytes(table.num_rows),
        "statistics_rows": table.num_rows,
        **({"counterfactuals": kinds} if (kinds := count_kinds(table)) else {}),
    }


def _value_counts(table: pa.Table, name: str) -> dict[str, int]:
    if name not in table.column_names:
        return {}
    counts = pc.value_counts(table[name]).to_pylist()
    return {str(c["values"]): c["counts"] for c in sorted(counts, key=lambda c: str(c["values"]))}


def _sources(table: pa.Table) -> dict[str, dict[str, int]]:
    found = {name: count_kinds(table, name) for name in (layout.KIND, layout.GRADE)}
    if layout.ORIGIN in table.column_names:
        origins = pa.table({layout.ORIGIN: read_origins(table)})
        found = {layout.ORIGIN: count_kinds(origins, layout.ORIGIN), **found}
    return {name: counts for name, counts in found.items() if counts}


def _sky(table: pa.Table) -> dict[str, Any]:
    """Extent on the sky; right ascension as the shortest arc that holds all, so 0h is no edge."""
    if not {"ra", "dec"} <= set(table.column_names) or not table.num_rows:
        return {}
    ra, dec = table_numbers(table, "ra", "dec")
    here = on_sky(ra, dec)
    if not here.any():
        return {}
    ra, dec = np.sort(ra[here] % 360), np.sort(dec[here])
    gaps = np.diff(np.append(ra, ra[0] + 360.0))
    widest = int(gaps.argmax())
    return {
        "ra_from_deg": float(ra[(widest + 1) % len(ra)]),
        "ra_to_deg": float(ra[widest]),
        "ra_width_deg": float(360.0 - gaps[widest]),
        "dec_from_deg": float(dec[0]),
        "dec_to_deg": float(dec[-1]),
        "bricks": len(_value_counts(table, "brickname")),
    }


def _by_class(table: pa.Table, name: str) -> dict[str, NDArray[np.float64]]:
    values, label = table_numbers(table, name, "label")
    return {str(c): values[label == c] for c in (0, 1)}


def _statistics(
    table: pa.Table, geometry: Geometry
) -> dict[str, dict[str, dict[str, float | int]]]:
    return {
        name: {label: _describe(values) for label, values in _by_class(table, name).items()}
        for name in (*_DESCRIBED, *geometry.band_columns(*layout.MEASURED))
        if {name, "label"} <= {*table.column_names}
    }


def _usable(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Finite values whose differences are finite too."""
    return values[np.abs(values) < 1e300]


def _describe(values: NDArray[np.float64]) -> dict[str, float | int]:
    """Order statistics of the finite values, and how many are null or not finite."""
    finite = _usable(values)
    counts: dict[str, float | int] = {"n": len(finite), "nulls": len(values) - len(finite)}
    if len(finite):
        points = np.percentile(finite, [0, 5, 50, 95, 100]).tolist()
        counts |= zip(("min", "p5", "median", "p95", "max"), points, strict=True)
    return counts


def _histograms(table: pa.Table, geometry: Geometry) -> dict[str, dict[str, Any]]:
    found, band = {}, geometry.reference_band
    for name in (*_HISTOGRAMS, f"scale_{band}", f"clip_frac_{band}"):
        if not {name, "label"} <= set(table.column_names):
            continue
        groups = {c: _usable(v) for c, v in _by_class(table, name).items()}
        every = np.concatenate(list(groups.values()))
        if not len(every):
            continue
        # A long tail would leave one full bin: values beyond the 99th percentile go into the last.
        low, high = float(every.min()), float(np.percentile(every, 99))
        edges = np.linspace(low, high if high > low else low + 1.0, HISTOGRAM_BINS + 1)
        counts = {
            c: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist()
            for c, v in groups.items()
        }
        found[name] = {"edges": edges.tolist(), **counts}
    return found


def _pixel_statistics(
    shards: Sequence[OpenShard], geometry: Geometry, clip: float | None
) -> dict[str, dict[str, float]]:
    """Stored values by band, of the first stamps of each split (shards are shuffled)."""
    most = geometry.scaled_rows(PIXEL_ROWS)
    chosen, taken = [], dict[str, int]()
    for shard in shards:
        room = most - taken.get(shard.split, 0)
        stamps = payload_view(shard.records(0, min(shard.rows, max(0, room))), geometry)
        taken[shard.split] = taken.get(shard.split, 0) + len(stamps)
        chosen.append(stamps)
    if not sum(map(len, chosen)):
        return {}
    pixels = np.concatenate(chosen)
    return {band: _band_numbers(pixels[:, i], clip) for i, band in enumerate(geometry.bands)}


def _band_numbers(values: NDArray[np.float16], clip: float | None) -> dict[str, float]:
    finite = values[np.isfinite(values)].astype(np.float64)
    numbers = {} if finite.size == values.size else {"not_finite": 1 - finite.size / values.size}
    if not finite.size:
        return numbers
    numbers |= {
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "min": float(finite.min()),
        "median": float(np.median(finite)),
        "max": float(finite.max()),
    }
    if clip is not None:
        numbers["at_clip"] = float(np.mean(np.abs(finite) >= clip))
    return numbers


def _record(target: Target, position: int) -> dict[str, Any]:
    """One record in full."""
    shard, row = _locate(target, position)
    records = shard.records(row, row + 1)
    record, geometry = records[0], target.geometry
    key = record_key(record)
    start = row * geometry.stride
    sidecar = shard.sidecar.slice(row, 1).to_pylist()[0] if shard.has_sidecar else {}
    try:
        fields = record_json(record, geometry)
    except ValueError as error:
        raise ShardError(
            f"{shard.name}, row {row}, offset {start + geometry.json_offset}: the JSON member "
            f"cannot be read: {error}."
        ) from error
    crc = int(payload_crc32(records, geometry)[0])
    clip = target.dataset.manifest.normalization.clip if target.dataset else None
    pixels = payload_view(records, geometry)[0]
    return {
        "split": shard.split,
        "position": position,
        "shard": shard.name,
        "row": row,
        "key": key,
        "members": [
            _member(key + layout.STAMP_SUFFIX, start, geometry.npy_bytes),
            _member(
                key + layout.JSON_SUFFIX, start + geometry.json_header_offset, layout.JSON_BYTES
            ),
        ],
        "payload": {"offset": start + layout.PAYLOAD_OFFSET, "crc32": crc},
        "crc32_agrees": crc == sidecar["payload_crc32"] if "payload_crc32" in sidecar else None,
        "json": fields,
        "sidecar": {name: _plain(value) for name, value in sidecar.items()},
        "pixels": {b: _band_numbers(pixels[i], clip) for i, b in enumerate(geometry.bands)},
    }


def _member(name: str, offset: int, size: int) -> dict[str, Any]:
    """One member of the tar: its header's offset, that of its data, and its size."""
    return {"name": name, "offset": offset, "data": offset + layout.BLOCK, "bytes": size}


def _locate(target: Target, position: int) -> tuple[OpenShard, int]:
    if not target.splits:
        raise DatasetError(f"{target.location}: there is no record {position}: it has no split.")
    split = target.splits[0]
    starts = np.cumsum([0, *target.shard_rows(split)]).tolist()
    if 0 <= position < starts[-1]:
        number = bisect_right(starts, position) - 1
        return target.open_shard(split, number), position - starts[number]
    records = f"records 0 to {starts[-1] - 1}" if starts[-1] else "none"
    raise DatasetError(f"{target.location}: there is no record {position}: {split} has {records}.")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no bytes, dates or decimals."""
    value = value.hex() if isinstance(value, bytes) else plain(value)
    return value if value is None or isinstance(value, (int, float, str)) else str(value)
