"""How often items of the audit fail where there is nothing to find, by simulation.

    python -m tests.study.false_alarms [--out FILE.md] [--runs N]

Leak probes: features that know nothing of the label, with a region's own level (intra-class
correlation 0 to 0.2) and a share of lenses that differs between regions. Labels: scores of finders
of several strengths whose labels are right. Calibration: probabilities that are the truth. Every
rate is the share of the runs in which the item fails; it should be at most 5 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from scipy import special

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.labels import check_label_noise
from lenstrain.audit.leaks import run_probe, surely_above
from lenstrain.audit.scores import check_calibration
from lenstrain.evaluation.linear import auroc_by_region, linear_probe
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.probability import measure_probabilities
from lenstrain.evaluation.resampling import make_resampling
from lenstrain.evaluation.scores import Scores

PER_CLASS, REGIONS, ICC = (100, 300, 1000, 3000), (10, 30, 100), (0.0, 0.2)
CONFIG = AuditConfig(resamples=200)
PROBES = {
    "metadata_probe": (8, CONFIG.data.metadata_upper),
    "sky_probe": (6, CONFIG.data.sky_upper),
    "psf_depth": (2, CONFIG.science.psf_depth_upper),
    "brightness_only": (3, CONFIG.science.brightness_upper),
}
"""Features of each probe, and its limit."""


def draw_regions(rng, per_class, regions):
    """Region and label of every row; the share of lenses differs between regions."""
    share = rng.uniform(0.3, 0.7, regions)
    region = rng.integers(regions, size=2 * per_class)
    return region, (rng.random(2 * per_class) < share[region]).astype(np.int8)


def draw_values(rng, region, icc, columns):
    """Standard normal values of which a share `icc` of the variance is the region's."""
    level = rng.standard_normal((region.max() + 1, columns))[region]
    return np.sqrt(icc) * level + np.sqrt(1 - icc) * rng.standard_normal((len(region), columns))


def probe_fails(name, rng, per_class, regions, icc):
    """Whether a leak probe fails, and whether it would if judged by its upper end."""
    columns, limit = PROBES[name]
    region, labels = draw_regions(rng, per_class, regions)
    table = pa.table({"label": labels, "region_id": region})
    found = run_probe(draw_values(rng, region, icc, columns), table, CONFIG, limit)
    return surely_above(found, limit), found["high"] > limit


def norm_stat_fails(rng, per_class, regions, icc):
    region, labels = draw_regions(rng, per_class, regions)
    found = linear_probe(draw_values(rng, region, icc, 9), labels, region, resamples=200)
    return (found["low"] > CONFIG.data.norm_stat_lower,)


def annulus_fails(rng, per_class, regions, icc):
    region, labels = draw_regions(rng, per_class, regions)
    values = draw_values(rng, region, icc, 1)[:, 0]
    found = auroc_by_region(labels, values, region, resamples=200)
    far = CONFIG.science.annulus_distance
    return (found["low"] > 0.5 + far or found["high"] < 0.5 - far,)


def make_scores(labels, logits, region):
    table = pa.table({"key": [str(i) for i in range(len(labels))]})
    count = int(region.max()) + 1
    return Scores(
        path="simulated", table=table, labels=labels, logits=logits, metadata={}, sha256="",
        region=region.astype(np.int32), n_regions=count, n_clusters=count,
    )  # fmt: skip


def label_noise_fails(strength, rng, per_class, regions, icc):
    region, labels = draw_regions(rng, per_class, regions)
    logits = strength * labels + draw_values(rng, region, icc, 1)[:, 0]
    evidence = SimpleNamespace(scores=make_scores(labels, logits, region))
    return (not check_label_noise(evidence, CONFIG).passed,)


def calibration_fails(strength, rng, per_class, regions, icc):
    """Labels drawn with the probabilities that are stated."""
    region, _ = draw_regions(rng, per_class, regions)
    logits = strength * (draw_values(rng, region, icc, 1)[:, 0])
    labels = (rng.random(len(logits)) < special.expit(logits)).astype(np.int8)
    options = EvaluationOptions(resamples=200, threads=1)
    resampling = make_resampling(int(region.max()) + 1, 200, 0, 0.95, "percentile")
    scores = make_scores(labels, logits, region)
    report = {"calibration": {"kind": "temperature", "slope": 1.0},
              "calibrated": measure_probabilities(scores, logits, resampling, options)}  # fmt: skip
    return (not check_calibration(SimpleNamespace(evaluation=report), CONFIG).passed,)


def rates(fails: Callable, runs: int) -> np.ndarray:
    """Share of the runs that fail, for every size: shape (judgements, sizes, regions, icc)."""
    grid = list(product(range(len(PER_CLASS)), range(len(REGIONS)), range(len(ICC))))
    found = None
    for i, j, k in grid:
        made = np.array([fails(np.random.default_rng([run, i, j, k]), PER_CLASS[i], REGIONS[j],
                               ICC[k]) for run in range(runs)], float).mean(0)  # fmt: skip
        if found is None:
            found = np.zeros((len(made), len(PER_CLASS), len(REGIONS), len(ICC)))
        found[:, i, j, k] = made
    return found


def studies() -> dict[str, Callable]:
    def of(function, first):
        return lambda *arguments: function(first, *arguments)

    found = {name: of(probe_fails, name) for name in PROBES}
    found |= {"norm_stat_probe": norm_stat_fails, "annulus_only": annulus_fails}
    found |= {f"label_noise, d' = {d:g}": of(label_noise_fails, d) for d in (1.0, 2.0, 4.0)}
    found["calibration"] = of(calibration_fails, 4.0)
    return found


def main() -> int:
    """Simulate every item and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--only", action="append", help="this item only (repeatable)")
    given = parser.parse_args()
    heads = [*(f"{n} a class" for n in PER_CLASS), *(f"{n} regions" for n in REGIONS), "all"]
    lines = [f"| Item | {' | '.join(heads)} | by upper end |", "|---|" + "---|" * (len(heads) + 1)]
    for name, fails in studies().items():
        if given.only and name not in given.only:
            continue
        own, *others = rates(fails, given.runs)
        means = [*own.mean((1, 2)), *own.mean((0, 2)), own.mean()]
        cells = [f"{value:.1%}" for value in means]
        old = f"{others[0].mean():.0%}" if others else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | {old} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + f"\n\n{given.runs} runs of each size.\n"
    if given.out:
        given.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
