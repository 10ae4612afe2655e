"""Simulate surveys of which the truth is known, evaluate them, and count what holds.

    make coverage
    python -m tests.study.coverage [--draws 250] [--processes 2] [--out TABLE.md]

Every draw is a survey with a calibration split of its own, evaluated as `lenstrain evaluate` does.
An interval holds if it contains the true value, a promise if what it states is true.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lenstrain.evaluation import metrics
from lenstrain.evaluation.compare import compare
from lenstrain.evaluation.measure import Measurement, measure
from lenstrain.evaluation.options import EvaluationOptions
from tests.study.population import KINDS, MEANS, Population, Setting, draw

PREVALENCE = 0.01
OPTIONS = EvaluationOptions(
    resamples=300,
    fprs=(0.05, 0.01, 0.003),
    completeness_fprs=(0.01,),
    prevalence=(PREVALENCE,),
    completeness_axes=(("theta_e_arcsec",),),
    inspection_budget=30.0,
    population=1000.0,
    betas=(),
    examples=0,
    threads=1,
)

CORRELATIONS = (0.0, 0.05, 0.1, 0.2)
SETTINGS = (
    *(
        Setting(g, icc, unequal)
        for g, icc, unequal in product((10, 30, 100), CORRELATIONS, (False, True))
    ),
    *(Setting(800, icc, negatives=8000, positives=4000) for icc in (0.0, 0.2)),
    *(Setting(100, 0.1, copies=copies, negatives=800 * copies) for copies in (4, 24)),
    *(Setting(100, icc, ties=True) for icc in (0.0, 0.2)),
)
SHORT = (Setting(30, 0.1), Setting(100, 0.2, unequal=True), Setting(100, 0.1, copies=4))

Result = tuple[str, str, bool | None]
"""Name, "interval" or "promise", and whether it held; None: nothing was stated."""


def results(population: Population, seed: int) -> Iterator[Result]:
    """Draw one survey, evaluate it, and judge everything it states."""
    rng = np.random.default_rng([seed, hash_of(population.setting)])
    scores, reference = draw(population, rng), draw(population, rng, 1_000_000)
    found = measure(scores, reference, replace(OPTIONS, seed=seed), lambda stage, done: None)
    yield from _ranking(found.entries, population, scores)
    yield from _operating(found, population)
    yield from _probabilities(found.entries, population)
    yield from _comparison(scores, population, rng, seed)


def hash_of(setting: Setting) -> int:
    """A number that is the same in every process."""
    return sum(ord(letter) * 31**k for k, letter in enumerate(setting.name)) % 2**32


def _inside(name: str, entry: dict[str, Any], truth: float) -> Result:
    low, high = entry.get("low"), entry.get("high")
    if low is None or high is None or not np.isfinite([low, high]).all():
        return name, "interval", None
    return name, "interval", bool(low <= truth <= high)


def _ranking(entries: dict[str, Any], population: Population, scores: Any) -> Iterator[Result]:
    curve = population.curve
    rows = [
        np.bincount(scores.region[scores.labels == k], minlength=scores.n_clusters) for k in (0, 1)
    ]
    together = float((rows[0] / rows[0].sum() * (rows[1] / rows[1].sum())).sum())
    if not population.setting.ties:
        area = population.same_region(metrics.auroc(curve), together)
        yield _inside("AUROC", entries["auroc"], area)
    for fpr, entry in entries["tpr_at_fpr"].items():
        truth = metrics.tpr_at_fpr(curve, float(fpr)).tpr
        yield _inside(f"TPR at FPR {fpr}", entry, truth)
        if entry["value"] is None and entry["at_most"] is not None:
            yield "TPR where not supported: at most", "promise", truth <= entry["at_most"]
    truth = metrics.partial_auroc(curve, OPTIONS.partial_max_fpr)
    yield _inside("partial AUROC", entries["partial_auroc"], truth)
    truth = metrics.average_precision(curve, population.share)
    yield _inside("average precision", entries["average_precision"], truth)
    rare = entries["average_precision_at_prevalence"][f"{PREVALENCE:g}"]
    truth = metrics.average_precision(curve, PREVALENCE)
    yield _inside(f"average precision, {PREVALENCE:g}", rare, truth)
    yield "average precision: at least", "promise", truth >= rare["at_least"]


def _operating(found: Measurement, population: Population) -> Iterator[Result]:
    for choice in found.entries["thresholds"]:
        if choice["guaranteed"]:
            kept = population.fpr(choice["threshold"]) <= choice["target_fpr"] * (1 + 1e-9)
            yield f"threshold for FPR {choice['target_fpr']:g}", "promise", kept
    cut = found.entries["completeness_thresholds"][0]
    tpr, fpr = population.tpr(cut["threshold"]), population.fpr(cut["threshold"])
    yield _inside("completeness", cut["tpr"], tpr)
    yield _inside("FPR", cut["fpr"], fpr)
    yield "FPR: at most", "promise", fpr <= cut["fpr"]["upper_limit"]
    purity = metrics.purity(tpr, fpr, PREVALENCE)
    stated = cut["purity"][f"{PREVALENCE:g}"]
    yield _inside("purity", stated, purity)
    yield "purity: at least", "promise", purity >= stated["at_least"]
    cells = found.completeness[0].cells.columns()
    truths = np.array([population.survival(cut["threshold"], mean) for mean in MEANS])
    assert cells["n"].size == len(KINDS)
    inside = (cells["region_lo95"] <= truths) & (truths <= cells["region_hi95"])
    for held in inside:
        yield "completeness of a cell", "interval", bool(held)
    joint = (cells["joint_lo95"] <= truths) & (truths <= cells["joint_hi95"])
    yield "completeness of all cells at once", "interval", bool(joint.all())


def _probabilities(entries: dict[str, Any], population: Population) -> Iterator[Result]:
    if population.setting.ties:
        return  # rounded logits are not calibrated
    yield _inside("negative log likelihood", entries["nll"], population.nll)
    yield _inside("Brier score", entries["brier"], population.brier)
    error = entries["ece"]["debiased_squared"]
    yield _inside("calibration error", error, 0.0)


def _comparison(scores: Any, population: Population, rng: Any, seed: int) -> Iterator[Result]:
    """Two finders that are equally good by construction: the true difference is zero."""
    one, other = (
        replace(scores, path=name, logits=scores.logits + rng.standard_normal(scores.n))
        for name in ("one", "other")
    )
    found = compare(one, other, replace(OPTIONS, seed=seed))
    yield _inside("difference of AUROC", found["auroc"], 0.0)
    yield _inside("difference of TPR at FPR 0.01", found["tpr_at_fpr"]["0.01"], 0.0)


def study(setting: Setting, draws: int, first: int = 0) -> dict[tuple[str, str], list[int]]:
    """Count, for each statement, how often it held, was made, and was not made."""
    population = Population(setting)
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for seed in range(first, first + draws):
        for name, kind, held in results(population, seed):
            count = counts[name, kind]
            count[0] += bool(held)
            count[1] += held is not None
            count[2] += held is None
    return dict(counts)


def run(settings: tuple[Setting, ...], draws: int, processes: int) -> dict[Setting, Any]:
    """The study of many settings, in several processes."""
    found = {}
    with ProcessPoolExecutor(processes) as pool:
        futures = {setting: pool.submit(study, setting, draws) for setting in settings}
        for setting, future in futures.items():
            found[setting] = future.result()
            print(f"{len(found)} of {len(settings)}: {setting.name}", file=sys.stderr, flush=True)
    return found


GROUPS = {
    "10 regions": lambda s: s.regions == 10,
    "30": lambda s: s.regions == 30,
    "100": lambda s: s.regions == 100 and s.copies == 1 and not s.ties,
    "800": lambda s: s.regions == 800,
    "4 or 24 copies": lambda s: s.copies > 1,
    "ties": lambda s: s.ties,
}


def table(found: dict[Setting, Any], kind: str) -> list[str]:
    """Markdown: the mean over settings of a group and, in brackets, the worst of them."""
    names = [
        name
        for name, of in dict.fromkeys(key for counts in found.values() for key in counts)
        if of == kind
    ]
    lines = ["| | " + " | ".join(GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    for name in names:
        cells = [_cell(found, chosen, name, kind) for chosen in GROUPS.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(found: dict[Setting, Any], chosen: Any, name: str, kind: str) -> str:
    counts = [c[name, kind] for s, c in found.items() if chosen(s) and (name, kind) in c]
    shares = [held / made for held, made, _ in counts if made >= 30]
    if not shares:
        return "n/a"
    if kind == "promise":
        return f"{100 * (1 - np.mean(shares)):.1f} ({100 * (1 - min(shares)):.1f})"
    return f"{100 * np.mean(shares):.0f} ({100 * min(shares):.0f})"


def report(found: dict[Setting, Any], draws: int) -> str:
    """Both tables, as they stand in docs/reference/metrics.md."""
    lines = [
        f"{len(found)} settings, {draws} surveys each. Coverage of intervals stated as 95 %, in "
        "percent: mean over the settings of a column, worst in brackets.",
        "",
        *table(found, "interval"),
        "",
        "Failures of what is promised at 95 %, in percent: mean, worst.",
        "",
        *table(found, "promise"),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description="Coverage of every interval and promise.")
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--short", action="store_true", help="three settings only")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    found = run(SHORT if options.short else SETTINGS, options.draws, options.processes)
    text = report(found, options.draws)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
