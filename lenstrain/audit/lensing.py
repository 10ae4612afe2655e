"""Checks of what the finder makes of counterfactuals: whether it finds lensing, or light."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lensprep.dataset.layout import LENSED
from lensprep.dataset.strictjson import plain
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.config import WHERE_RESOLVED
from lenstrain.evaluation.counterfactuals import FEWEST, SMOOTH, rank_pairs
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.pages import interval
from lenstrain.scoretable import in_order

EXTRA_LIGHT: Final = ("unlensed", "magnified")
"""Kinds that are extra light and nothing else: a finder that takes them for lenses is not fit for
publication."""
REMEDY: Final = (
    "Make counterfactuals of every split with `lensprep counterfactual`, convert them with the "
    "source, train with a larger data.counterfactual_share, and learn only from lenses whose shape "
    f'can be seen: data.where="{WHERE_RESOLVED}" (docs/how-to/counterfactuals.md#train)'
)
PIECES: Final = (
    "Pieces at the radius of an arc pass for one: the finder does not see how images lie to each "
    "other"
)
"""Said where `scattered` alone fails, for which more counterfactuals are no remedy."""
_VET: Final = (
    "More counterfactuals have not cured this (docs/explanation/shortcuts.md): vet candidates for "
    "how their images lie to each other, and state the rate beside every figure."
)
LEVEL: Final = 0.95


def check_counterfactuals(evidence: Evidence, config: AuditConfig) -> Outcome:
    """The light of a lens without its lensing must not pass as a lens."""
    require_counterfactuals(evidence)
    found = evidence.evaluation.get("counterfactuals")
    if found is None:
        raise NotRunError("The evaluation leaves the counterfactuals out. Evaluate again.")
    upper = found["fpr_upper"]
    kinds = {kind: cell for kind, cell in found["kinds"].items() if kind != LENSED}
    if not kinds or upper is None:
        what = "counterfactual that is no lens" if not kinds else "limit of its false-positive rate"
        raise NotRunError(f"The evaluation has no {what}. {REMEDY}.")
    allowed = config.science.counterfactual_factor * upper
    rates = {kind: cell["pass_rate"] for kind, cell in kinds.items()}
    failed = [kind for kind, rate in rates.items() if rate["value"] > allowed]
    blocks = config.purpose == "publish" and not {*EXTRA_LIGHT}.isdisjoint(failed)
    listed = ", ".join(f"{kind} {rate['value']:.2%}" for kind, rate in rates.items())
    return Outcome(
        passed=not failed,
        measured={
            "kinds": {
                kind: {"n": cell["n"], "flagged": cell["flagged"], "factor": cell["factor"]}
                | {name: rates[kind][name] for name in ("value", "low", "high")}
                for kind, cell in kinds.items()
            },
            "fpr_upper": upper,
        },
        threshold=allowed,
        severity="blocker" if blocks else "warn",
        detail=f"At the threshold for {found['name']}, which at most {upper:.2%} of the non-lenses "
        f"pass, counterfactuals pass at these rates: {listed}; {allowed:.2%} is allowed."
        + _meaning(failed, f"Light is taken for lensing ({', '.join(failed)})"),
        remedy=_remedy(failed),
    )


def check_pairs(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Well resolved lenses must outscore the same light on the same host without lensing."""
    require_counterfactuals(evidence)
    limits, pairs = config.science, rank_pairs(evidence.scores)
    resolved = (pairs.theta_e >= limits.resolved_arcsec) | (pairs.over_psf >= limits.resolved_ratio)
    groups: dict[str, dict[str, Any]] = {}
    for name, among in (("resolved", resolved), ("unresolved", ~resolved)):
        groups[name] = {"all": pairs.entry(among, LEVEL)} | {
            kind: pairs.entry(among & (pairs.kind == kind), LEVEL)
            for kind in in_order(pairs.kind.tolist())
        }
    enough = {kind: entry for kind, entry in groups["resolved"].items()
              if entry["families"] >= FEWEST}  # fmt: skip
    if not enough:
        raise NotRunError(
            f"The scores have {groups['resolved']['all']['families']} well resolved lenses with a "
            f"counterfactual of their family, and {FEWEST} are needed: raise --share of `lensprep "
            "counterfactual`, or test on more stamps."
        )
    failed = [kind for kind, entry in enough.items() if entry["value"] < limits.pairs_won]
    listed = ", ".join(f"{kind} {entry['value']:.1%}" for kind, entry in enough.items())
    smooth = ~resolved & np.isin(pairs.kind, SMOOTH)
    others = plain(pairs.across(smooth, EvaluationOptions(resamples=config.resamples)))
    return Outcome(
        passed=not failed,
        measured={
            name: {kind: {key: entry[key] for key in ("n", "value", "low", "high")}
                   for kind, entry in group.items()}
            for name, group in groups.items()
        } | {"unresolved_across": {key: others[key] for key in ("value", "low", "high")}},
        threshold=limits.pairs_won,
        detail="Well resolved lenses score higher than the same light without lensing in: "
        f"{listed}."
        + ("" if others["value"] is None else " The others against unlensed, magnified and "
           f"extended light of all families: AUROC {interval(others)}; 0.5 is chance.")
        + _meaning(failed, "Shape is not what ranks them"),
        remedy=_remedy(failed),
    )  # fmt: skip


def _meaning(failed: list[str], meaning: str) -> str:
    """What it means that some kinds fail; empty if none does."""
    if not failed:
        return ""
    return f" {PIECES if _only_pieces(failed) else meaning}."


def _remedy(failed: list[str]) -> str:
    """What to do where that is not what the checklist says."""
    return _VET if _only_pieces(failed) else ""


def _only_pieces(failed: list[str]) -> bool:
    # All pairs together may fail for the sake of one kind.
    return {*failed} - {"all"} == {"scattered"}


def require_counterfactuals(evidence: Evidence) -> None:
    """Refuse scores without counterfactuals."""
    if evidence.scores.counterfactuals is None:
        raise NotRunError(f"The scores hold no counterfactuals. {REMEDY}.")
