"""Findings about splits and classes: their shares, and what two splits have in common (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lensprep.checks.finding import (
    Finding,
    both_classes,
    farthest_share,
    in_several,
    listing,
    positions_in_both,
    separations,
)
from lensprep.checks.tally import Circumstances, Finder, Tally
from lensprep.dataset.layout import PIXEL_SCALE_ARCSEC, STAMP_SIZE

MIN_SEPARATION_ARCSEC: Final = STAMP_SIZE * PIXEL_SCALE_ARCSEC * 2**0.5
"""Diagonal of a stamp, 23.7 arcsec: two stamps farther apart share no pixel."""
MIN_CLASS_SHARE: Final = 0.2
MAX_CLASS_SHARE_GAP: Final = 0.05
"""Largest difference of the share of lenses between splits."""
FRACTION_TOLERANCE: Final = 0.02
"""Tolerance of a declared split fraction."""
MIN_REGIONS: Final = 30
"""Fewest regions of a split whose metrics are given intervals by resampling regions."""


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
        "there."
        if lacking
        else "Every split has lenses and non-lenses."
        if counts
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


def _regions_disjoint(tally: Tally, about: Circumstances) -> Finding:
    return _shared("regions_disjoint", list(tally.regions), "regions")


def _bricks_disjoint(tally: Tally, about: Circumstances) -> Finding:
    return _shared("bricks_disjoint", list(tally.bricks), "bricks")


def _sky_separation(tally: Tally, about: Circumstances) -> Finding:
    positions = {split: _positions(tally, split=split) for split in tally.splits()}
    nearest, close = separations(positions, MIN_SEPARATION_ARCSEC)
    return Finding(
        item="sky_separation",
        severity="blocker",
        passed=not close,
        measured={"close_positions": close, "nearest_arcsec": nearest},
        threshold=MIN_SEPARATION_ARCSEC,
        detail=f"{close} positions lie closer than a stamp's diagonal to one of another split: the "
        "same sky is in both."
        if close
        else "No two stamps of different splits share sky.",
    )


def _task_ids(tally: Tally, about: Circumstances) -> Finding:
    groups = {split: np.concatenate(parts) for split, parts in tally.task_ids.items() if parts}
    total = sum(len(ids) for ids in groups.values())
    repeated = total - sum(len(np.unique(ids)) for ids in groups.values())
    across = len(in_several(groups.values()))
    return Finding(
        item="duplicate_task_ids",
        severity="warn" if repeated and not across else "blocker",
        passed=not across and not repeated,
        measured={"across_splits": across, "within_a_split": repeated},
        threshold=0,
        detail=f"{across} task_ids are in more than one split, {repeated} rows repeat one of their "
        "own split. Files may have been listed twice."
        if across or repeated
        else f"All {total} task_ids differ.",
    )


def _duplicate_images(tally: Tally, about: Circumstances) -> Finding:
    if not about.pixels:
        return Finding(
            item="duplicate_images",
            severity="info",
            passed=None,
            measured=None,
            threshold=0,
            detail="Not run: stamps are compared only with --pixels.",
        )
    every = {key: np.concatenate(parts) for key, parts in tally.images.items() if parts}
    total = sum(len(hashes) for hashes in every.values())
    across_splits = len(in_several(_joined(every, 0)))
    across_labels = len(in_several(_joined(every, 1)))
    unique = len(np.unique(np.concatenate(list(every.values())))) if every else 0
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
    by_class = {label: _positions(tally, label=label) for label in ("0", "1")}
    unique = {label: len(sky) for label, sky in by_class.items()}
    both = positions_in_both(*by_class.values())
    rows = both_classes(tally.classes())
    per = {label: rows[label] / n for label, n in unique.items() if n}
    return Finding(
        item="hosts",
        severity="info",
        passed=None,
        measured={"positions": unique, "both_labels": both, "rows_per_position": per},
        threshold=None,
        detail=f"Distinct positions: {unique['0']} of controls, {unique['1']} of lenses, {both} "
        "with both labels. Distinct controls, not rows, limit what can be certified at a low FPR.",
    )


def _shared(item: str, pairs: Sequence[tuple[Any, str]], what: str) -> Finding:
    by_split: dict[str, list[str]] = {}
    for value, split in pairs:
        by_split.setdefault(split, []).append(str(value))
    shared = in_several(by_split.values()).tolist()
    distinct = len({value for value, _ in pairs})
    return Finding(
        item=item,
        severity="blocker",
        passed=not shared,
        measured=len(shared),
        threshold=0,
        detail=f"{len(shared)} of {distinct} {what} are in more than one split: "
        f"{listing(shared)}. Their stamps share calibration, seeing and neighbours."
        if shared
        else f"None of the {distinct} {what} is in two splits.",
    )


def _positions(
    tally: Tally, *, split: str | None = None, label: str | None = None
) -> NDArray[np.float64]:
    """Distinct (ra, dec), degrees, shape (n, 2)."""
    parts = [
        array
        for (name, klass), arrays in tally.positions.items()
        if (split is None or name == split) and (label is None or klass == label)
        for array in arrays
    ]
    return np.unique(np.concatenate(parts), axis=0) if parts else np.empty((0, 2))


def _joined(
    groups: Mapping[tuple[str, str], NDArray[np.uint64]], part: int
) -> list[NDArray[np.uint64]]:
    """Hashes by one part of the key."""
    return [
        np.concatenate([hashes for key, hashes in groups.items() if key[part] == name])
        for name in {key[part] for key in groups}
    ]


FINDERS: Final[tuple[Finder, ...]] = (
    _both_classes,
    _class_balance,
    _split_fractions,
    _regions,
    _regions_disjoint,
    _bricks_disjoint,
    _sky_separation,
    _task_ids,
    _duplicate_images,
    _hosts,
)
