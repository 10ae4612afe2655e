"""What the best cheap classifier finds from light profiles, and the network's lead over it.

A candidate sees the flux in each band, or the mean stored value in rings around the centre: numbers
in which an arc looks like an equally bright host. Candidates are trained on rows of ``train``; the
best is chosen there too, by cross-validation over regions, and judged on other rows once, with
the network and under the same draws of regions. Only what the network adds to it is evidence that
the network sees shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lensprep.dataset import DECALS, Dataset, Geometry
from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.dataset.normalization import radius_px
from lensprep.dataset.sidecar import is_counterfactual
from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.linear import FOLDS, interval_entry
from lenstrain.evaluation.metrics import auroc, roc_curve
from lenstrain.evaluation.resampling import Scale, draw_regions
from lenstrain.probes.looking import brightness
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.radii import core_px, to_px, why_no_core
from lenstrain.probes.sample import Sample
from lenstrain.probes.scoring import Scorer

RING_EDGES_ARCSEC = (0.0, 0.393, 0.786, 1.179, 1.572, 2.096, 2.62, 3.406, 5.24, 8.384)
"""Nine rings: fine where the host and arcs of 0.5 to 2.5 arcsec lie, coarse in the sky."""

CHUNK = 1024
"""Stamps in memory at a time: whole batches of the scorer."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Light:
    """Some stamps without their shape, and the network's logits of them if asked for."""

    labels: NDArray[np.int8]
    regions: NDArray[Any]
    features: dict[str, Floats]
    """``profiles`` (n, bands x rings), and ``fluxes`` (n, bands) if the sidecar has the statistics
    and the stamps a core."""
    logits: Floats
    """Of the network, shape (n,); empty if it was not asked."""


@dataclass(frozen=True)
class Candidate:
    """One cheap classifier."""

    title: str
    sees: Literal["fluxes", "profiles"]
    make: Callable[[], Any]
    """Makes an untrained scikit-learn classifier, deterministic once trained."""


def _line() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def _boosting() -> Any:
    # No early stopping: it would split off rows, not regions.
    return HistGradientBoostingClassifier(early_stopping=False, random_state=0)


_RINGS = "the mean light in rings of each band"
CANDIDATES = {
    "flux_line": Candidate("Logistic regression on the flux in each band", "fluxes", _line),
    "flux_boosting": Candidate("Gradient boosting on the flux in each band", "fluxes", _boosting),
    "profile_line": Candidate(f"Logistic regression on {_RINGS}", "profiles", _line),
    "profile_boosting": Candidate(f"Gradient boosting on {_RINGS}", "profiles", _boosting),
}


def measure_lead(dataset: Dataset, scorer: Scorer, options: ProbeOptions) -> dict[str, Any]:
    """Train the candidates, judge them and the network on the same rows, and compare.

    Returns
    -------
    dict
        ``candidates`` (by name: ``title``, ``features`` (their number), ``cross_validated_auroc``
        inside train, ``auroc`` and ``tpr`` on the judged rows), ``best`` (a name), ``network``
        (``auroc``, ``tpr``) and
        ``lead`` of the network over the best (``auroc``, ``tpr``), each ``{value, low, high,
        level}``; ``fpr``, ``train_rows``, ``train_regions``, and ``rows``, ``lenses``,
        ``non_lenses``, ``regions`` of the judged ones. Only a ``reason`` if it cannot be measured.
    """
    if options.split == "train":
        return {"reason": "the network was trained on these rows. Probe val or test."}
    split = dataset.manifest.splits.get("train")
    if split is None or not split.rows:
        return {"reason": "the dataset has no train split to learn light profiles from."}
    geometry = dataset.manifest.geometry
    core = None if why_no_core(geometry, options) else core_px(geometry, options)
    known = read_light(dataset, "train", options.baseline_train_rows, core)
    judged = read_light(dataset, options.split, options.baseline_rows, core, scorer)
    if min(len(np.unique(light.labels)) for light in (known, judged)) < 2:
        return {"reason": "the rows that were drawn hold one class only."}
    candidates = {name: c for name, c in CANDIDATES.items() if c.sees in known.features}
    inside = {name: cross_validate(c, known) for name, c in candidates.items()}
    if not np.isfinite(list(inside.values())).all():
        return {"reason": "train has too few regions with both classes to choose a candidate."}
    return _judge(candidates, inside, known, judged, options)


def _judge(
    candidates: dict[str, Candidate],
    inside: dict[str, float],
    known: Light,
    judged: Light,
    options: ProbeOptions,
) -> dict[str, Any]:
    scores = {name: _fit(c, known).decision_function(judged.features[c.sees])
              for name, c in candidates.items()}  # fmt: skip
    positive = judged.labels == 1
    resampling, region = draw_regions(
        positive, judged.logits, judged.regions, options.resamples, options.seed
    )

    def drawn(values: Floats) -> dict[str, Floats]:
        ranked = boot.rank_rows(positive, values, region, resampling.n_clusters)
        rates, _ = boot.tpr_at_fprs(ranked, resampling.weights, (options.fpr,))
        return {"auroc": boot.auroc_draws(ranked, resampling.weights), "tpr": rates[0]}

    def entries(draws: dict[str, Floats], scale: Scale = "logit") -> dict[str, Any]:
        return {what: interval_entry(resampling, values, scale) for what, values in draws.items()}

    draws = {name: drawn(values) for name, values in scores.items()}
    network = drawn(judged.logits)
    best = max(inside, key=inside.__getitem__)
    lead = {what: network[what] - draws[best][what] for what in network}
    return {
        "fpr": options.fpr,
        "train_rows": len(known.labels),
        "train_regions": len(np.unique(known.regions)),
        "rows": len(judged.labels),
        "lenses": int(positive.sum()),
        "non_lenses": int((~positive).sum()),
        "regions": resampling.n_clusters,
        "candidates": {
            name: {
                "title": candidates[name].title,
                "features": known.features[candidates[name].sees].shape[1],
                "cross_validated_auroc": inside[name],
            }
            | entries(draws[name])
            for name in candidates
        },
        "best": best,
        "network": entries(network),
        "lead": entries(lead, "linear"),
    }


def cross_validate(candidate: Candidate, light: Light) -> float:
    """Mean AUROC over folds of whole regions; NaN if no fold can be trained and judged.

    Each fold is judged alone: scores of two trainings share no scale.
    """
    features, labels = light.features[candidate.sees], light.labels
    folds = min(FOLDS, len(np.unique(light.regions)))
    if folds < 2:
        return float("nan")
    areas = []
    for rows, held_out in GroupKFold(folds).split(features, labels, light.regions):
        if min(len(np.unique(labels[part])) for part in (rows, held_out)) == 2:
            model = _fit(candidate, light, rows)
            scores = model.decision_function(features[held_out])
            areas.append(auroc(roc_curve(labels[held_out], scores)))
    return float(np.mean(areas)) if areas else float("nan")


def _fit(candidate: Candidate, light: Light, rows: Any = slice(None)) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return candidate.make().fit(light.features[candidate.sees][rows], light.labels[rows])


def azimuthal_means(pixels: NDArray[np.floating], geometry: Geometry = DECALS) -> Floats:
    """Mean stored value in each ring of each band, shape (n, bands x rings).

    Rings reach as far as the inscribed circle; those without a pixel are left out.
    """
    distance = radius_px(geometry.side).ravel()
    edges = np.minimum([to_px(edge, geometry) for edge in RING_EDGES_ARCSEC], geometry.side / 2)
    rings = np.digitize(distance, edges) == np.arange(1, len(edges))[:, None]
    rings = rings[rings.any(1)]
    weights = (rings / rings.sum(1, keepdims=True)).astype(np.float32)
    flat = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32)
    return np.asarray(flat @ weights.T, np.float64).reshape(len(pixels), -1)


def read_light(
    dataset: Dataset, split: str, rows: int, core: float | None, scorer: Scorer | None = None
) -> Light:
    """Light profiles of up to `rows` distinct images of a split, in split order.

    Fluxes are those within a radius of `core` pixels, if there is one.

    Every shard is a random sample of its split, so the first shards are one too, and only as many
    are read as are needed. Pixels are held `CHUNK` stamps at a time.
    """
    parts = []
    for sample in _samples(dataset, split, rows):
        features = {"profiles": azimuthal_means(sample.pixels, sample.geometry)}
        if core is not None and sample.has(*sample.geometry.band_columns("median", "scale")):
            features["fluxes"] = brightness(sample, core)
        logits = np.empty(0) if scorer is None else scorer(sample.pixels)
        parts.append(Light(sample.labels, sample.regions, features, logits))
    return Light(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.regions for part in parts]),
        {name: np.concatenate([part.features[name] for part in parts])
         for name in parts[0].features},
        np.concatenate([part.logits for part in parts]),
    )  # fmt: skip


def _samples(dataset: Dataset, split: str, rows: int) -> Iterator[Sample]:
    """The first `rows` distinct images of a split, some at a time, without counterfactuals."""
    manifest = dataset.manifest
    statistics = manifest.geometry.band_columns("median", "scale")
    wanted = ("label", "region_id", "pixel_hash", COUNTERFACTUAL, *statistics)
    names = [name for name in dataset.columns(split) if name in wanted]
    seen: set[Any] = set()
    left = rows
    for shard in dataset.split(split).shards:
        table = dataset.read_shard_sidecar(shard, names)
        new = _unseen(table, seen)
        new = new[~is_counterfactual(table)[new]][:left]
        left -= len(new)
        for start in range(0, len(new), CHUNK):
            index = new[start : start + CHUNK]
            some = table.take(pa.array(index))
            pixels = dataset.read_shard_pixels(shard, index)
            labels = some["label"].to_numpy().astype(np.int8)
            yield Sample(pixels, labels, some, manifest.normalization, split, manifest.geometry)
        if not left:
            return


def _unseen(table: pa.Table, seen: set[Any]) -> NDArray[np.int64]:
    """Rows of images that are not in `seen`, the first of each; they are added to it."""
    if "pixel_hash" not in table.column_names:
        return np.arange(table.num_rows)
    rows = []
    for row, image in enumerate(table["pixel_hash"].to_pylist()):
        if image is None or image not in seen:
            rows.append(row)
            seen.add(image)
    return np.array(rows, np.int64)
