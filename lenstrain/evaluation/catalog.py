"""Known lenses: find them among the scores by position, and measure how many are recovered.

A catalogue lens counts if a scored stamp of the unaltered sky lies within the radius. Stamps into
which an arc was injected are no images of real lenses, and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.errors import ScoresError, names_text
from lensprep.tables.catalog import Catalog
from lensprep.tables.positions import nearest_on_sky, read_positions
from lenstrain.evaluation.clustered import Shares, latent_correlation, no_value
from lenstrain.evaluation.operating import FrozenThreshold
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.scoretable import SkyScores

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """Which stamp shows which lens."""

    lens: NDArray[np.int64]
    """Rows of the catalogue that have a stamp."""
    stamp: NDArray[np.int64]
    """Row of the scores of each."""
    separation_arcsec: Floats
    repeated: int
    """Rows of the catalogue that share their stamp with a nearer one."""
    injected: int
    """Scored stamps left out because an arc was injected into them."""


def match_catalog(catalog: Catalog, scores: SkyScores, radius_arcsec: float) -> Match:
    """The nearest stamp of each lens within a radius on the sky; one lens a stamp.

    Raises
    ------
    ScoresError
        If the scores have no positions, or one that is not on the sky. A row without a position
        (null, NaN) shows no lens.
    """
    for name in ("ra", "dec"):
        if name not in scores.table.column_names:
            raise ScoresError(
                f"{scores.path} has no column {name}: a catalogue is matched by position. It has: "
                f"{names_text(scores.names, name)}. Name it with --columns {name}=COLUMN."
            )
    ra, dec = read_positions(scores.table, str(scores.path), unknown=True)
    injected = _injected(scores)
    rows = np.flatnonzero(~injected & ~np.isnan(ra))
    if not rows.size:
        empty = np.empty(0, np.int64)
        return Match(empty, empty, np.empty(0), 0, int(injected.sum()))
    nearest, arcsec = nearest_on_sky(catalog.ra, catalog.dec, ra[rows], dec[rows])
    close = np.flatnonzero(arcsec <= radius_arcsec)
    # The nearest lens of each stamp: one object may be in the catalogue under two names.
    close = close[np.argsort(arcsec[close], kind="stable")]
    stamp = rows[nearest[close]]
    first = np.sort(np.unique(stamp, return_index=True)[1])
    lens = close[first]
    order = np.argsort(lens)
    return Match(
        lens[order],
        stamp[first][order],
        arcsec[lens][order],
        int(close.size - first.size),
        int(injected.sum()),
    )


def _injected(scores: SkyScores) -> NDArray[np.bool_]:
    if "theta_e_arcsec" not in scores.table.column_names:
        return np.zeros(scores.logits.size, bool)
    theta = scores.table["theta_e_arcsec"].cast(pa.float64()).to_numpy()
    return np.asarray(theta > 0)


def measure_catalog(
    catalog: Catalog,
    scores: SkyScores,
    frozen: Sequence[FrozenThreshold],
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Recall of known lenses by grade at frozen thresholds, and the ones missed.

    Returns
    -------
    dict
        Entry ``known_lenses`` of metrics.json; see docs/reference/metrics.md.
    """
    match = match_catalog(catalog, scores, options.match_radius_arcsec)
    grades = np.array([catalog.grade[row] for row in match.lens], dtype=object)
    logits = scores.logits[match.stamp]
    cluster = _clusters(scores, match.stamp)
    cuts = [(choice.name, choice.threshold) for choice in frozen if choice.threshold is not None]
    recall = [
        {
            "name": name,
            "threshold": cut,
            "all": _recall(logits, cut, cluster, options),
            "by_grade": {
                str(grade): _recall(logits[grades == grade], cut, cluster[grades == grade], options)
                for grade in sorted(set(grades))
            },
        }
        for name, cut in cuts
    ]
    lenses = _lens_rows(catalog, scores, match, cuts[0][1] if cuts else None)
    return {
        "catalog": str(catalog.path),
        "catalog_sha256": catalog.sha256,
        "scores": str(scores.path),
        "radius_arcsec": options.match_radius_arcsec,
        "n_catalog": len(catalog.name),
        "n_matched": int(match.lens.size),
        "n_repeated": match.repeated,
        "n_injected_left_out": match.injected,
        "recall": recall,
        "missed": [lens for lens in lenses if not lens["found"]],
        "lenses": lenses,
    }


def _clusters(scores: SkyScores, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Region of each matched stamp; where regions are not known, each stamp counts as one."""
    if "region_id" in scores.table.column_names:
        column = scores.table["region_id"].take(pa.array(rows))
        if column.null_count == 0 and rows.size:
            return np.unique(column.to_numpy(zero_copy_only=False), return_inverse=True)[1]
    return np.arange(rows.size)


def _recall(
    logits: Floats, threshold: float, cluster: NDArray[np.int64], options: EvaluationOptions
) -> dict[str, Any]:
    """Share of lenses found: interval by region, Wilson next to it, and the counts."""
    found, n = logits > threshold, logits.size
    if n == 0:
        reason = "no lens of the catalogue was scored"
        return no_value(options.level, reason) | {"k": 0, "n": 0}
    regions, codes = np.unique(cluster, return_inverse=True)
    hits, rows = (
        np.bincount(codes, weights, minlength=regions.size).astype(np.float64)
        for weights in (found.astype(np.float64), np.ones(n))
    )
    correlation = latent_correlation(logits, codes)
    return Shares(hits, rows, np.asarray(float(n)), correlation).entry(options.level)


def _lens_rows(
    catalog: Catalog, scores: SkyScores, match: Match, threshold: float | None
) -> list[dict[str, Any]]:
    """The matched lenses, lowest score first."""
    keys = scores.table["key"].take(pa.array(match.stamp)).to_pylist()
    rows = [
        {
            "name": catalog.name[lens],
            "ra": float(catalog.ra[lens]),
            "dec": float(catalog.dec[lens]),
            "grade": catalog.grade[lens],
            "key": str(key),
            "separation_arcsec": float(separation),
            "logit": float(scores.logits[stamp]),
            "found": threshold is not None and bool(scores.logits[stamp] > threshold),
        }
        for lens, stamp, separation, key in zip(
            match.lens, match.stamp, match.separation_arcsec, keys, strict=True
        )
    ]
    return sorted(rows, key=lambda row: (row["logit"], row["name"]))
