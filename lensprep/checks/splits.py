"""Findings about splits and classes: their shares, and what two splits have in common (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lensprep.checks.finding import (
    Finding,
    both_classes,
    counted,
    farthest_share,
    in_several,
    listing,
    positions_in_both,
    separations,
)
from lensprep.checks.tally import Circumstances, Finder, Tally
from lensprep.dataset.layout import COUNTERFACTUAL

MIN_CLASS_SHARE: Final = 0.2
MAX_CLASS_SHARE_GAP: Final = 0.05
"""Largest difference of the share of lenses between splits."""
FRACTION_TOLERANCE: Final = 0.02
"""Tolerance of a declared split fraction."""
MIN_REGIONS: Final = 30
"""Fewest regions of a split for intervals by resampling regions to be trusted."""


def _both_classes(tally: Tally, about: Circumstances) -> Finding:
    counts = {split: both_classes(tally.classes(split)) for split in tally.splits()}
    lacking = [split for split, pair in counts.items() if not all(pair.values())]
    return Finding(
        item="both_classes",
        severity="blocker",
        passed=bool(counts) and not lacking,
        measured=counts,
        threshold="> 0 each",
        detail=f"One class is missing in: {listing(lacking)}. Nothing can be learnt or measured "
        "from such a split."
        if lacking
        else "Every split has lenses and non-lenses."
        if counts
        else "There are only counterfactuals. Name the tree that they were made from too."
        if tally.kinds
        else "No row could be read.",
    )


def _class_balance(tally: Tally, about: Circumstances) -> Finding:
    shares = {}
    for split in tally.splits():
        pair = both_classes(tally.classes(split))
        if sum(pair.values()):
            shares[split] = pair["1"] / sum(pair.values())
    gap = max(shares.values(), default=0.0) - min(shares.values(), default=0.0)
    even = all(MIN_CLASS_SHARE <= share <= 1 - MIN_CLASS_SHARE for share in shares.values())
    return Finding(
        item="class_balance",
        severity="warn",
        passed=even and gap <= MAX_CLASS_SHARE_GAP,
        measured=shares,
        threshold={"share": [MIN_CLASS_SHARE, 1 - MIN_CLASS_SHARE], "gap": MAX_CLASS_SHARE_GAP},
        detail="Share of lenses: "
        + ", ".join(f"{split} {share:.1%}" for split, share in shares.items())
        + ". Calibration and purity assume the share of the split they were made on.",
    )


def _split_fractions(tally: Tally, about: Circumstances) -> Finding:
    counts = tally.splits()
    total = max(1, sum(counts.values()))
    fractions = {split: n / total for split, n in counts.items()}
    text = ", ".join(f"{split} {share:.1%}" for split, share in fractions.items())
    threshold: Any
    if about.declared is not None:
        off = farthest_share(fractions, dict.fromkeys(fractions, 0.0) | dict(about.declared))
        passed, threshold = off <= FRACTION_TOLERANCE, dict(about.declared)
        hint = f"Farthest from what was declared: {100 * off:.1f} points."
    else:
        train = fractions.get("train", 0.0)
        passed = len(fractions) >= 3 and train >= max(fractions.values())
        threshold = "train is the largest of three"
        hint = "Train should be the largest of train, val, test; declare fractions to check them."
    return Finding(
        item="split_fractions",
        severity="warn",
        passed=passed,
        measured=fractions,
        threshold=threshold,
        detail=f"{text}. {hint}",
    )


def _regions(tally: Tally, about: Circumstances) -> Finding:
    counts = {split: len({r for r, s in tally.regions if s == split}) for split in tally.splits()}
    few = [s for s, n in counts.items() if s in ("val", "test") and n < MIN_REGIONS]
    return Finding(
        item="regions_per_split",
        severity="warn",
        passed=not few,
        measured=counts,
        threshold=MIN_REGIONS,
        detail=f"Few regions in {listing(few)}: intervals from resampling regions are too narrow."
        if few
        else "Enough regions to resample.",
    )


def _disjoint(what: Literal["regions", "bricks"], tally: Tally, about: Circumstances) -> Finding:
    if not getattr(tally, what) and not about.source.survey.is_phase4c:
        return Finding(
            item=f"{what}_disjoint", threshold=0, detail=f"Not run: there are no {what}."
        )
    by_split: dict[str, list[str]] = defaultdict(list)
    for value, split in getattr(tally, what):
        by_split[split].append(str(value))
    shared = in_several(by_split.values()).tolist()
    distinct = len({value for values in by_split.values() for value in values})
    return Finding(
        item=f"{what}_disjoint",
        severity="blocker",
        passed=not shared,
        measured=len(shared),
        threshold=0,
        detail=f"{len(shared)} of {distinct} {what} are in more than one split: "
        f"{listing(shared)}. Their stamps share calibration, seeing and neighbours."
        if shared
        else f"None of the {distinct} {what} is in two splits.",
    )


def _sky_separation(tally: Tally, about: Circumstances) -> Finding:
    by_split = _grouped(tally.positions, 0)
    positions = {split: np.unique(by_split[split], axis=0) for split in tally.splits()}
    limit = about.source.survey.geometry.diagonal_arcsec
    nearest, close = separations(positions, limit)
    return Finding(
        item="sky_separation",
        severity="blocker",
        passed=not close,
        measured={"close_positions": close, "nearest_arcsec": nearest},
        threshold=limit,
        detail=f"{close} positions lie closer than a stamp's diagonal to one of another split: the "
        "same sky is in both."
        if close
        else "No two stamps of different splits share sky.",
    )


def _task_ids(tally: Tally, about: Circumstances) -> Finding:
    groups = {split: np.concatenate(hashes) for split, hashes in tally.task_ids.items()}
    total = sum(len(ids) for ids in groups.values())
    repeated = total - sum(len(np.unique(ids)) for ids in groups.values())
    across = len(in_several(groups.values()))
    return Finding(
        item="duplicate_task_ids",
        severity="warn" if repeated and not across else "blocker",
        passed=not across and not repeated,
        measured={"across_splits": across, "within_a_split": repeated},
        threshold=0,
        detail=f"{across} task_ids are in more than one split, {repeated} rows repeat one from "
        "the same split. Files may have been copied twice."
        if across or repeated
        else f"All {total} task_ids differ.",
    )


def _duplicate_images(tally: Tally, about: Circumstances) -> Finding:
    if not about.pixels:
        return Finding(
            item="duplicate_images",
            threshold=0,
            detail="Not run: stamps are compared only with --pixels.",
        )
    by_split, by_label = _grouped(tally.images, 0), _grouped(tally.images, 1)
    by_label.pop(COUNTERFACTUAL, None)
    across_splits, across_labels = (len(in_several(g.values())) for g in (by_split, by_label))
    total = sum(map(len, by_split.values()))
    unique = len(np.unique(np.concatenate([np.empty(0, np.uint64), *by_split.values()])))
    return Finding(
        item="duplicate_images",
        severity="blocker",
        passed=not across_splits and not across_labels,
        measured={
            "images": total,
            "unique": unique,
            "across_splits": across_splits,
            "across_labels": across_labels,
        },
        threshold={"across_splits": 0, "across_labels": 0},
        detail=f"{total} stamps, {unique} distinct; {across_splits} are in more than one split, "
        f"{across_labels} have both labels, pixel for pixel.",
    )


def _hosts(tally: Tally, about: Circumstances) -> Finding:
    by_class, none = _grouped(tally.positions, 1), np.empty((0, 2))
    controls, lenses = (np.unique(by_class.get(label, none), axis=0) for label in ("0", "1"))
    unique = {"0": len(controls), "1": len(lenses)}
    both = positions_in_both(controls, lenses)
    rows = both_classes(tally.classes())
    per = {label: rows[label] / n for label, n in unique.items() if n}
    return Finding(
        item="hosts",
        measured={"positions": unique, "both_labels": both, "rows_per_position": per},
        detail=f"Distinct positions: {unique['0']:,} of controls, {unique['1']:,} of lenses, "
        f"{both:,} with both labels. Distinct controls, not rows, limit what can be certified at a "
        "low FPR.",
    )


FAMILIES: Final = "counterfactual_split"
"""Name of the finding about counterfactuals."""


def find_families(tally: Tally) -> Finding:
    """Whether every counterfactual has its host and its donor in its own split.

    Where there are counterfactuals, this is the one finding about them.
    """
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for (split, kind), count in sorted(tally.kinds.items()):
        rows[split][kind] = count
    lost = {"host": 0, "donor": 0}
    for what, among in (("host", "control"), ("donor", "lens")):
        for split in rows:
            named, there = (
                np.concatenate([np.empty(0, np.uint64), *tally.families.get((one, split), ())])
                for one in (what, among)
            )
            lost[what] += int(np.count_nonzero(~np.isin(named, there)))
    text = "; ".join(f"{split} {counted(kinds, len(kinds))}" for split, kinds in rows.items())
    return Finding(
        item=FAMILIES,
        severity="blocker",
        passed=not any(lost.values()),
        measured={"rows": dict(rows), "without_host": lost["host"], "without_donor": lost["donor"]},
        threshold=0,
        detail=f"Counterfactuals, which no other figure counts: {text}. "
        + (
            f"For {lost['host']} of them the source has no host (a control of the same split and "
            f"region), for {lost['donor']} no donor (a lens of the same split). Name the tree that "
            "they were made from too, or make them again from this one."
            if any(lost.values())
            else "All have their host and donor in the same split."
        ),
    )


def _grouped(
    arrays: Mapping[tuple[str, str], list[NDArray[Any]]], by: int
) -> dict[str, NDArray[Any]]:
    """Arrays of each split (``by`` 0) or each class (1), joined."""
    groups: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for key, found in arrays.items():
        groups[key[by]] += found
    return {name: np.concatenate(found) for name, found in groups.items()}


FINDERS: Final[tuple[Finder, ...]] = (
    _both_classes,
    _class_balance,
    _split_fractions,
    _regions,
    partial(_disjoint, "regions"),
    partial(_disjoint, "bricks"),
    _sky_separation,
    _task_ids,
    _duplicate_images,
    _hosts,
)
