"""Check of the labels by the scores: lenses among the non-lenses, and vice versa."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import Outcome
from lenstrain.evaluation.linear import auroc_by_region
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import unique_rows
from lenstrain.pages import interval
from lenstrain.probes.options import ProbeOptions

TOP: Final = 0.1
"""Share of the lenses that counts as the top."""
CHANCE: Final = 0.55
"""An AUROC below this is luck, whatever its interval: one of forty lies above 0.5."""
CONFIDENCE: Final = 0.95
_SHOWN = 3

Mask = NDArray[np.bool_]


def check_label_noise(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Non-lenses among the best scores, bright arcs among the worst, and ranks that are luck.

    If a share of the labels is swapped, in all columns alike, that share of the non-lenses are
    lenses and score like lenses: the threshold that flags the top `TOP` of the lenses flags them
    at the same rate, whereas the finder's own mistakes become rare at the top.
    """
    scores, limits = evidence.judged, config.scores
    first = unique_rows(scores.identity)
    area = auroc_by_region(
        scores.labels[first], scores.logits[first], scores.region[first],
        resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    blind = area["value"] < CHANCE or (area["low"] is not None and area["low"] <= 0.5)
    lens = scores.labels[first] == 1
    cut = float(np.quantile(scores.logits[first][lens], 1 - TOP))
    top = _rate(scores, 0, first[~lens], scores.logits[first[~lens]] > cut)
    allowed = max(limits.max_top_ratio, 2 * expected_ratio(area["value"]))
    ratio = {name: top[name] / TOP for name in ("value", "low")}
    bright, faint = _faint(scores, first, lens)
    may_miss = max(limits.max_bright_missed, float(stats.norm.sf(separation(area["value"]))))
    noisy = ratio["low"] > allowed or faint["low"] > may_miss
    worst = {"non_lenses": _keys(scores, first[~lens], -scores.logits[first[~lens]], cut),
             "bright_lenses": _keys(scores, bright, scores.logits[bright], None)}  # fmt: skip
    if blind:
        text = (f"The finder ranks no better than chance (AUROC {interval(area)}): the labels are "
                "shuffled, or nothing was learnt.")  # fmt: skip
    else:
        text = (
            f"{top['k']} of {top['n']:,} non-lenses lie above the score that {TOP:.0%} of the "
            f"lenses reach, {ratio['value']:.1%} of the lenses' rate; {faint['k']} of "
            f"{faint['n']:,} lenses with bright arcs score below the median non-lens."
        )
        if noisy:
            named = [key for keys in worst.values() for key in keys]
            text += f" Labels are wrong, or confusers abound: look at {', '.join(named)}."
    return Outcome(
        passed=not blind and not noisy,
        measured={"auroc": area, "top_ratio": ratio, "top_non_lenses": top["k"],
                  "bright_missed": faint, "worst": worst},
        threshold={"top_ratio": allowed, "bright_missed": may_miss},
        severity="blocker" if blind else "warn",
        detail=text,
    )  # fmt: skip


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
    return bright[missed], _rate(scores, 1, bright, missed)


def _rate(scores: Scores, label: int, rows: NDArray[np.int64], hit: Mask) -> dict[str, Any]:
    """Share of some rows of a class, and its one-sided lower limit by region; 0 where unknown."""
    among, flagged = np.zeros((2, scores.n), bool)
    among[rows], flagged[rows[hit]] = True, True
    share = scores.shares(label, among, flagged)
    k, n = int(share.k), int(share.n)
    low = float(np.nan_to_num(share.lower_limit(CONFIDENCE))) if k else 0.0
    return {"k": k, "n": n, "value": k / max(n, 1), "low": low}


def _keys(
    scores: Scores, rows: NDArray[np.int64], order: NDArray[np.float64], cut: float | None
) -> list[str]:
    chosen = rows[np.argsort(order)[:_SHOWN]]
    if cut is not None:
        chosen = chosen[scores.logits[chosen] > cut]
    return [str(scores.table["key"][int(row)].as_py()) for row in chosen]
