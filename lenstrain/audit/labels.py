"""Check of the labels by the scores: lenses among the non-lenses, and the other way round."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import Outcome, Severity
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import unique_rows
from lenstrain.probes.linear import auroc_by_region
from lenstrain.probes.options import ProbeOptions

TOP: Final = 0.1
"""Share of the lenses that counts as the top."""
CHANCE: Final = 0.55
"""An AUROC below this is luck, whatever its interval: one of forty lies above 0.5."""
CONFIDENCE: Final = 0.95
_SHOWN = 3

Mask = NDArray[np.bool_]


def check_label_noise(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Non-lenses among the best scores, and bright arcs among the worst; ranks no better than luck.

    If a share of the labels is swapped, in all columns alike, that share of the non-lenses are
    lenses and score like lenses: at the threshold that flags the top `TOP` of the lenses they are
    flagged at the same rate, whereas a finder's own mistakes grow rare at the top.
    """
    scores, limits = evidence.scores, config.scores
    first = unique_rows(scores.identity)
    area = auroc_by_region(
        scores.labels[first], scores.logits[first], scores.region[first],
        resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    blind = area["value"] < CHANCE or (area["low"] is not None and area["low"] <= 0.5)
    lens = scores.labels[first] == 1
    cut = float(np.quantile(scores.logits[first][lens], 1 - TOP))
    top = _rate(scores, first[~lens], scores.logits[first[~lens]] > cut)
    allowed = max(limits.max_top_ratio, 2 * expected_ratio(area["value"]))
    ratio = {name: top[name] / TOP for name in ("value", "low")}
    bright, faint = _faint(scores, first, lens)
    may_miss = max(limits.max_bright_missed, float(stats.norm.sf(separation(area["value"]))))
    noisy = ratio["low"] > allowed or faint["low"] > may_miss
    severity: Severity = "blocker" if blind else "warn"
    worst = {"non_lenses": _keys(scores, first[~lens], -scores.logits[first[~lens]], cut),
             "bright_lenses": _keys(scores, bright, scores.logits[bright], None)}  # fmt: skip
    return Outcome(
        passed=not blind and not noisy,
        measured={"auroc": area, "top_ratio": ratio, "top_non_lenses": top["k"],
                  "bright_missed": faint, "worst": worst},
        threshold={"top_ratio": allowed, "bright_missed": may_miss},
        severity=severity,
        detail=_words(blind, noisy, area, top, ratio, faint, worst),
    )  # fmt: skip


def _words(
    blind: bool,
    noisy: bool,
    area: dict[str, Any],
    top: dict[str, Any],
    ratio: dict[str, float],
    faint: dict[str, Any],
    worst: dict[str, list[str]],
) -> str:
    if blind:
        return (
            f"The finder ranks no better than chance (AUROC {area['value']:.3f} [{area['low']:.3f},"
            f" {area['high']:.3f}]): the labels are shuffled, or nothing was learnt."
        )
    text = (
        f"Above the score that {TOP:.0%} of the lenses reach lie {top['k']} of {top['n']:,} "
        f"non-lenses, {ratio['value']:.1%} of the lenses' rate; {faint['k']} of {faint['n']:,} "
        "lenses with bright arcs score below the median non-lens."
    )
    if noisy:
        named = [key for keys in worst.values() for key in keys]
        text += f" Labels are wrong, or confusers abound: look at {', '.join(named)}."
    return text


def expected_ratio(area: float) -> float:
    """False-positive over true-positive rate at the top, of two normal populations of one width.

    A weak finder mistakes non-lenses at the top too; this is how many, for its AUROC.
    """
    return float(stats.norm.sf(stats.norm.isf(TOP) + separation(area))) / TOP


def separation(area: float) -> float:
    """Distance d' of two normal populations of one width whose AUROC is `area`, in widths."""
    return math.sqrt(2) * float(stats.norm.ppf(min(max(area, 0.5), 1 - 1e-9)))


def _faint(
    scores: Scores, first: NDArray[np.int64], lens: Mask
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Lenses with bright arcs, and those of them that score below the median non-lens."""
    if not scores.has("arc_snr"):
        return first[:0], {"k": 0, "n": 0, "value": 0.0, "low": 0.0}
    bright = first[lens]
    bright = bright[scores.numbers("arc_snr")[bright] >= ProbeOptions().bright_arc_snr]
    middle = float(np.median(scores.logits[first[~lens]]))
    missed = scores.logits[bright] < middle
    return bright[missed], _rate(scores, bright, missed)


def _rate(scores: Scores, rows: NDArray[np.int64], hit: Mask) -> dict[str, Any]:
    """Share of some rows, and its one-sided lower limit for rows that come in regions.

    Clopper and Pearson's limit for the number of independent rows, which is that of the rows over
    the design effect of the regions.
    """
    k, n = int(hit.sum()), len(rows)
    if not k:
        return {"k": 0, "n": n, "value": 0.0, "low": 0.0}
    effect = design_effect(hit, scores.region[rows])
    low = float(stats.beta.ppf(1 - CONFIDENCE, k / effect, (n - k) / effect + 1))
    return {"k": k, "n": n, "value": k / n, "low": low}


def design_effect(hit: Mask, region: NDArray[Any]) -> float:
    """Variance of a share over that of as many independent rows, at least 1."""
    _, index = np.unique(region, return_inverse=True)
    count, hits = np.bincount(index), np.bincount(index, hit)
    groups, share = len(count), float(hit.mean())
    if groups < 2 or share in (0.0, 1.0):
        return 1.0
    between = groups / (groups - 1) * float(((hits - share * count) ** 2).sum()) / len(hit)
    return max(1.0, between / (share * (1 - share)))


def _keys(
    scores: Scores, rows: NDArray[np.int64], order: NDArray[np.float64], cut: float | None
) -> list[str]:
    chosen = rows[np.argsort(order)[:_SHOWN]]
    if cut is not None:
        chosen = chosen[scores.logits[chosen] > cut]
    return [str(scores.table["key"][int(row)].as_py()) for row in chosen]
