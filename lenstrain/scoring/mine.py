"""Hard-negative mining: training weights for controls that a finder mistakes for lenses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.configfile import typed
from lensprep.errors import ScoresError
from lensprep.store import Uri
from lensprep.tables.catalog import read_catalog
from lensprep.tables.columns import to_floats
from lensprep.tables.positions import nearest_on_sky, read_positions
from lensprep.tables.writer import check_table, table_writer
from lenstrain.scoretable import LOGIT, ScoresAre, check_keys, read_rows

UNKNOWN_BIN = -1
"""Bin of the rows without a PSF FWHM."""

_OPTIONAL = ("task_id", "split", "region_id", "pixel_hash", "ra", "dec")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class MiningOptions:
    """What counts as a hard negative, and how much more often it is shown."""

    fraction: float = 0.05
    """Fraction of the distinct control images of each PSF bin that counts as hard."""

    factor: float = 4.0
    """Weight of a hard control; every other row weighs 1."""

    psf_bins: int = 4
    """Bins of ``psfsize_r`` with equally many controls. One cut over all would take them from the
    worst seeing alone, where everything looks like a ring."""

    psf_edges: tuple[float, ...] | None = None
    """Inner edges of the bins in arcsec, ascending, instead of ``psf_bins``."""

    radius_arcsec: float = 5.0
    """A control this near to a lens of the catalogue is left out: it may well be that lens."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")
        if self.factor <= 0:
            raise ValueError(f"factor must be above 0, got {self.factor}")
        if self.psf_bins < 1:
            raise ValueError(f"psf_bins must be at least 1, got {self.psf_bins}")
        if self.psf_edges is not None and list(self.psf_edges) != sorted(set(self.psf_edges)):
            raise ValueError(f"psf_edges must ascend, got {list(self.psf_edges)}")
        if self.radius_arcsec < 0:
            raise ValueError(f"radius_arcsec must not be negative, got {self.radius_arcsec}")


def mine(
    scores: Sequence[Uri],
    out: Uri,
    *,
    catalog: Uri | None = None,
    catalog_columns: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    scores_are: ScoresAre | None = None,
    options: MiningOptions | None = None,
) -> dict[str, Any]:
    """List the top-scored controls of each PSF bin, with weights for ``data.sample_weights``.

    Parameters
    ----------
    scores : sequence of str or path
        Tables of `lenstrain infer` on the training split. A row found in several of them has its
        mean logit, as in an ensemble. These and all other tables are read by
        `lensprep.tables.reader`, and may be local or s3://.
    out : str or path
        Table to write: key, weight, label, logit, psf_bin, rank (from 1, in its bin) and other
        columns of the scores.
    catalog : str or path, optional
        Known lenses with positions.
    catalog_columns : mapping, optional
        What it calls ``ra`` and ``dec``, where the heading is not known.
    columns : mapping, optional
        What the scores call some of their columns.
    scores_are : {"probability", "logit"}, optional
        What the scores are, if no `lenstrain infer` wrote them.
    options : MiningOptions, optional

    Returns
    -------
    dict
        ``out``, ``controls``, ``hard``, ``excluded`` (controls near a known lens),
        ``counterfactuals`` (left out, too: they are no controls), ``bins`` (a list with edges,
        controls, hard and the logit at the cut) and ``notes``.

    Raises
    ------
    ScoresError
        If a table cannot be used, or there is no control.
    StorageError
        If `out` cannot be written or its suffix names no format: said before the work.
    """
    options = options or MiningOptions()
    check_table(out)
    positions = () if catalog is None else ("ra", "dec")
    table, splits, sources = _read_tables(scores, columns, scores_are, positions)
    controls = table.filter(pa.array(to_floats(table["label"], "label", scores[0]) == 0))
    if not controls.num_rows:
        raise ScoresError(f"{scores[0]} has no control (label 0) to mine.")
    near = np.zeros(controls.num_rows, bool)
    if catalog is not None:
        lenses = read_catalog(catalog, catalog_columns)
        ra, dec = read_positions(controls, str(scores[0]), unknown=True)
        placed = np.flatnonzero(~np.isnan(ra))
        if placed.size:
            arcsec = nearest_on_sky(ra[placed], dec[placed], lenses.ra, lenses.dec)[1]
            near[placed] = arcsec <= options.radius_arcsec
    kept = controls.filter(pa.array(~near))
    if not kept.num_rows:
        raise ScoresError(
            f"Every control lies within {options.radius_arcsec:g} arcsec of a lens of {catalog}."
        )
    psf = to_floats(kept["psfsize_r"], "psfsize_r", scores[0])
    bins, edges = _psf_bins(psf, options)
    logit = kept["logit"].to_numpy()
    rank, hard, lines = _choose(logit, _images(kept), bins, edges, options.fraction)
    chosen = (
        kept.filter(pa.array(hard))
        .append_column("weight", pa.array(np.full(int(hard.sum()), options.factor)))
        .append_column("psf_bin", pa.array(bins[hard], pa.int32()))
        .append_column("rank", pa.array(rank[hard], pa.int64()))
        .sort_by([("psf_bin", "ascending"), ("rank", "ascending")])
    )
    result = {
        "out": str(out),
        "controls": controls.num_rows,
        "hard": chosen.num_rows,
        "excluded": int(near.sum()),
        "counterfactuals": max(source.pop("counterfactuals") for source in sources),
        "bins": lines,
        "notes": _notes(catalog, splits),
    }
    facts = {**result, "scores": sources, "catalog": None if catalog is None else str(catalog)}
    with table_writer(out, chosen.schema.remove_metadata(), facts) as write:
        write(chosen)
    return result


def _read_tables(
    paths: Sequence[Uri],
    columns: Mapping[str, str] | None,
    scores_are: ScoresAre | None,
    needed: Sequence[str],
) -> tuple[pa.Table, list[str], list[dict[str, Any]]]:
    """Rows of all tables, with the mean logit of each key; their splits, and each file's origin.

    The first table must have the names of `columns`, others may use the standard ones instead.
    """
    tables: list[pa.Table] = []
    sources: list[dict[str, Any]] = []
    for path in paths:
        table, source = _read_one(path, columns, scores_are, needed, if_there=bool(tables))
        tables.append(table)
        sources.append({"file": str(path), **source})
    datasets = {source["dataset_id"] for source in sources if source.get("dataset_id")}
    if len(datasets) > 1:
        raise ScoresError(
            "The scores are of different datasets "
            f"({', '.join(sorted(name[:12] for name in datasets))}). Mine them one by one."
        )
    shared = set.intersection(*(set(table.column_names) for table in tables))
    names = [name for name in tables[0].column_names if name in shared]
    try:
        table = pa.concat_tables([t.select(names) for t in tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise ScoresError(
            f"The tables of scores do not agree: {str(error).splitlines()[0]} Write them alike."
        ) from error
    splits = [] if "split" not in names else table["split"].unique().to_pylist()
    if len(tables) > 1:
        rest = [name for name in names if name not in ("key", "logit")]
        table = table.group_by("key", use_threads=False).aggregate(
            [("logit", "mean"), *((name, "first") for name in rest)]
        )
        table = table.rename_columns(
            [name.removesuffix("_mean").removesuffix("_first") for name in table.column_names]
        )
    return table, splits, sources


def _read_one(
    path: Uri,
    columns: Mapping[str, str] | None,
    scores_are: ScoresAre | None,
    needed: Sequence[str],
    *,
    if_there: bool,
) -> tuple[pa.Table, dict[str, Any]]:
    every = ("key", "label", LOGIT, "psfsize_r", *needed)
    found = read_rows(path, every, columns, scores_are, if_there=if_there)
    check_keys(found.table["key"], path)
    for name in ("label", "psfsize_r"):
        to_floats(found.table[name], name, path)
    names = [name for name in ("psfsize_r", *_OPTIONAL) if name in found.table.column_names]
    table = found.table.select(["key", "label", *names])
    table = table.add_column(2, "logit", pa.array(found.logits))
    origin = {name: found.metadata.get(name) for name in ("checkpoint_sha256", "dataset_id")}
    made = 0 if found.counterfactuals is None else len(found.counterfactuals.logits)
    return table, origin | {"precision": found.precision, "counterfactuals": made}


def _psf_bins(
    psf: NDArray[np.float64], options: MiningOptions
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Bin of each control by its PSF FWHM, and the inner edges in arcsec.

    Rows without one are in the bin `UNKNOWN_BIN`; an edge belongs to the bin above it.
    """
    known = np.isfinite(psf)
    if options.psf_edges is not None:
        edges = np.asarray(options.psf_edges, np.float64)
    elif known.any():
        shares = np.arange(1, options.psf_bins) / options.psf_bins
        edges = np.unique(np.quantile(psf[known], shares))
    else:
        edges = np.empty(0)
    bins = np.searchsorted(edges, psf, side="right").astype(np.int32)
    bins[~known] = UNKNOWN_BIN
    return bins, edges


def _images(table: pa.Table) -> NDArray[np.int64]:
    """Number of each distinct image: a control repeated 24 times must not fill a bin's list."""
    if "pixel_hash" not in table.column_names or table["pixel_hash"].null_count:
        return np.arange(table.num_rows)
    codes = table["pixel_hash"].combine_chunks().dictionary_encode().indices
    return np.asarray(codes.to_numpy(), np.int64)


def _choose(
    logit: NDArray[np.float64],
    image: NDArray[np.int64],
    bins: NDArray[np.int32],
    edges: NDArray[np.float64],
    fraction: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[dict[str, Any]]]:
    """Rank of each control in its bin, whether it is hard, and a line for each bin."""
    rank, hard, lines = np.zeros(logit.size, np.int64), np.zeros(logit.size, bool), []
    outer = [None, *edges.tolist(), None]
    for number in np.unique(bins).tolist():
        rows = np.flatnonzero(bins == number)
        order = rows[np.argsort(-logit[rows], kind="stable")]
        rank[order] = np.arange(1, order.size + 1)
        first = np.unique(image[order], return_index=True)[1]
        best = logit[order[np.sort(first)]]  # of each distinct image, descending
        cut = best[int(np.ceil(fraction * best.size)) - 1]
        hard[rows] = logit[rows] >= cut
        known = number != UNKNOWN_BIN
        lines.append(
            {
                "psf_low": outer[number] if known else None,
                "psf_high": outer[number + 1] if known else None,
                "known": known,
                "controls": rows.size,
                "images": best.size,
                "hard": int(hard[rows].sum()),
                "logit_cut": float(cut),
            }
        )
    return rank, hard, lines


def _notes(catalog: Uri | None, splits: list[str]) -> list[str]:
    notes = []
    if catalog is None:
        notes.append(
            "No catalogue of known lenses was given: a real lens among the controls will be taught "
            "as a non-lens, several times. Give one with --catalog."
        )
    others = sorted({str(split) for split in splits if split and split != "train"})
    if others:
        notes.append(
            f"The scores are of split {', '.join(others)}, but training uses rows of train only. "
            "Score it with `lenstrain infer --split train`."
        )
    return notes
