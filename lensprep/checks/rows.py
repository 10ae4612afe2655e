"""Findings about rows: can they be read, do they keep the contract, are they good stamps (pure)."""

from __future__ import annotations

from collections import Counter
from typing import Final

from lensprep.checks.finding import Finding, both_classes, counted, listing
from lensprep.checks.tally import (
    BAD_PIXEL_LIMIT,
    RESOLVED_RATIO,
    Circumstances,
    Finder,
    Tally,
)
from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.decode.account import CLASSES
from lensprep.errors import count_text
from lensprep.source.listing import UNFINISHED
from lensprep.source.survey import FAMILY_COLUMNS, LABEL_COLUMN, SPLIT_COLUMN, Column

REJECT_RATE: Final = 0.001
REJECT_RATE_BLOCKER: Final = 0.01
REJECT_GAP: Final = 0.001
"""Largest reject rate that passes, largest that is no blocker (the default of
``convert --max-reject-rate``), and largest difference between the classes."""
MAX_UNRESOLVED: Final = 0.3


def _readable(tally: Tally, about: Circumstances) -> Finding:
    files = [f"{bad.path}: {bad.reason}" for bad in about.source.bad_files]
    groups = [
        f"{file} ({count_text(rows, 'row')}) {reason}"
        for file, rows, reason in sorted(tally.unread)
    ]
    return Finding(
        item="readable",
        severity="blocker",
        passed=not files and not groups,
        measured={"bad_files": len(files), "bad_row_groups": len(groups)},
        threshold=0,
        detail=f"Cannot be read: {listing(files + groups)}. Copy again, or convert with "
        "--skip-bad-files."
        if files or groups
        else f"{count_text(about.source.row_groups, 'row group')} read.",
    )


def _finished(tally: Tally, about: Circumstances) -> Finding:
    left, marked = about.source.unfinished, about.source.is_marked
    return Finding(
        item="finished",
        severity="blocker" if left else "info",
        passed=False if left else marked or None,
        measured={"unfinished": left, "success": marked},
        detail=f"There is {left}: {UNFINISHED}. Run the job again, or, if nothing is missing, "
        "remove it; `convert` refuses it without --skip-bad-files."
        if left
        else "The job that wrote the files has marked them as complete (_SUCCESS)."
        if marked
        else "No _SUCCESS next to the files. Many writers never write one; after a Spark job "
        "its absence may mean that rows are missing.",
    )


def _schema(tally: Tally, about: Circumstances) -> Finding:
    """A file that lacks a required column cannot be opened at all, so only values are left."""
    present, left_out = about.source.schema.names, about.source.left_out
    expected = _own_columns(about) if about.source.survey.is_phase4c else ()
    missing = [name for name in expected if name not in present]
    extra = [name for name in present if name not in about.source.survey.column_by_name]
    widths = [len({*f.columns, *dict(f.stated), SPLIT_COLUMN}) for f in about.source.files]
    parts = ["Every required column is there, of the right type, in every row group."]
    if tally.misfits:
        parts = [f"{len(tally.misfits)} row groups break the contract: {sorted(tally.misfits)[0]}"]
    if missing:
        parts.append(f"Optional columns that no file has: {listing(missing)}.")
    if extra:
        parts.append(f"Extra columns, kept: {listing(extra)}.")
    if left_out:
        found = [f"{name} {what}" for name, what in left_out.items()]
        parts.append(
            f"Extra columns without a type for all files: {listing(found)}. `convert` refuses them "
            "unless they are left out with --drop-column."
        )
    return Finding(
        item="schema",
        severity="blocker" if tally.misfits or not left_out else "warn",
        passed=not (tally.misfits or left_out),
        measured={
            "columns": [min(widths), max(widths)],
            "missing": missing,
            "extra": extra,
            "without_a_type": dict(left_out),
            "bad_row_groups": len(tally.misfits),
        },
        threshold="all required columns",
        detail=" ".join(parts),
    )


def _own_columns(about: Circumstances) -> dict[str, Column]:
    """Columns of the survey, without those of counterfactuals."""
    known = about.source.survey.column_by_name
    family = {column.name for column in FAMILY_COLUMNS}
    return {name: column for name, column in known.items() if name not in family}


def _null_rules(tally: Tally, about: Circumstances) -> Finding:
    columns = _own_columns(about)
    counts = {name: sum(tally.nulls[name, label] for label in CLASSES) for name in columns}
    nulls = {name: n for name, n in counts.items() if n and not columns[name].nullable}
    required = any(columns[name].required for name in nulls)
    return Finding(
        item="null_rules",
        severity="blocker" if required or not nulls else "warn",
        passed=not nulls,
        measured=nulls,
        threshold=0,
        detail=f"Null where the contract allows none: {counted(nulls)}."
        if nulls
        else "No null where the contract allows none.",
    )


def _control_rules(tally: Tally, about: Circumstances) -> Finding:
    faults = {name: n for name, n in sorted(tally.control_faults.items()) if n}
    return Finding(
        item="control_rules",
        severity="warn",
        passed=not faults,
        measured=faults,
        threshold=0,
        detail="Controls hold a value where there should be zero or null: "
        f"{counted(faults)}. The contract for controls has changed, or labels are wrong."
        if faults
        else "Controls hold zero or null in every column of the injection.",
    )


def _value_ranges(tally: Tally, about: Circumstances) -> Finding:
    faults = {name: n for name, n in sorted(tally.out_of_range.items()) if n}
    known = about.source.survey.column_by_name
    return Finding(
        item="value_ranges",
        severity="warn",
        passed=not faults,
        measured=faults,
        threshold={name: [known[name].minimum, known[name].maximum] for name in faults},
        detail=f"Values outside the plausible range, or NaN: {counted(faults)}."
        if faults
        else "Every value lies in its plausible range.",
    )


def _label_consistency(tally: Tally, about: Circumstances) -> Finding:
    faults = dict(sorted(tally.label_faults.items()))
    present = about.source.schema.names
    names = [n for n in (LABEL_COLUMN, "is_control", "theta_e_arcsec") if n in present]
    *others, last = names
    text = f"{', '.join(others)} and {last}" if others else last
    return Finding(
        item="label_consistency",
        severity="blocker",
        passed=not faults,
        measured=faults,
        threshold=0,
        detail=f"Rows whose {text} do not give one label: {counted(faults)}. Conversion rejects "
        "them."
        if faults
        else f"{text} agree in every row."
        if others
        else f"{text} gives every row a label.",
    )


def _filtered(tally: Tally, about: Circumstances) -> Finding:
    counts = dict(sorted(tally.filtered.items()))
    return Finding(
        item="filtered",
        measured=counts,
        detail=f"Conversion would leave out: {counted(counts)}."
        if counts
        else "Upstream marked no row as unusable.",
    )


def _reject_rate(tally: Tally, about: Circumstances) -> Finding:
    if not about.pixels:
        return Finding(
            item="reject_rate",
            threshold=REJECT_RATE,
            detail="Not run: stamps are decoded only with --pixels.",
        )
    good, bad, reasons = Counter[str](), Counter[str](), Counter[str]()
    for (_, label), hashes in tally.images.items():
        good[label] += sum(map(len, hashes))
    for (reason, _, label), n in sorted(tally.undecoded.items()):
        bad[label] += n
        reasons[reason] += n
    labels = ("0", "1", *({COUNTERFACTUAL} & {*bad, *good}))
    rates = {label: bad[label] / max(1, bad[label] + good[label]) for label in labels}
    worst, gap = max(rates.values()), abs(rates["0"] - rates["1"])
    return Finding(
        item="reject_rate",
        severity="blocker" if worst > REJECT_RATE_BLOCKER else "warn",
        passed=worst <= REJECT_RATE and gap <= REJECT_GAP,
        measured={"by_class": rates, "reasons": dict(reasons)},
        threshold={"rate": REJECT_RATE, "blocker": REJECT_RATE_BLOCKER, "class_gap": REJECT_GAP},
        detail=f"Stamps that conversion would reject: {counted(reasons)}."
        if reasons
        else "Every stamp can be decoded and normalised.",
    )


def _quality(tally: Tally, about: Circumstances) -> Finding:
    rows = both_classes(tally.classes())
    bad = {c: tally.quality["bad_pixels", c] / rows[c] for c in ("0", "1") if rows[c]}
    weak = tally.quality["no_magnification", "1"]
    names = {"0": "non-lenses", "1": "lenses"}
    text = ", ".join(f"{names[c]} {share:.1%}" for c, share in bad.items())
    return Finding(
        item="stamp_quality",
        measured={"bad_pixels": bad, "lenses_with_magnification_below_1": weak},
        detail=f"bad_pixel_frac above {BAD_PIXEL_LIMIT}: {text or 'none'}. "
        f"Not magnified: {count_text(weak, 'lens')}."
        if {"bad_pixel_frac", "magnification"} & {*about.source.schema.names}
        else "Not run: there is no bad_pixel_frac and no magnification.",
    )


def _unresolved(tally: Tally, about: Circumstances) -> Finding:
    total = sum(tally.resolution.values())
    unresolved = sum(n for (_, resolved), n in tally.resolution.items() if not resolved)
    share = unresolved / total if total else None
    unknown = tally.classes().get("1", 0) - total
    by_radius = {}
    for radius in sorted({radius for radius, _ in tally.resolution}):
        blurred, resolved = (tally.resolution[radius, flag] for flag in (False, True))
        by_radius[f"{radius:g}"] = blurred / (blurred + resolved)
    return Finding(
        item="unresolved_share",
        severity="warn",
        passed=None if share is None else share <= MAX_UNRESOLVED,
        measured={"share": share, "unknown": unknown, "by_theta_e_arcsec": by_radius},
        threshold=MAX_UNRESOLVED,
        detail=f"Not run: none of {unknown} lenses has a theta_E and a psfsize_r."
        if share is None
        else f"{share:.1%} of lenses have theta_E below {RESOLVED_RATIO} of the PSF's FWHM "
        "(psfsize_r): a network can learn their extra flux but not their shape. "
        "Report them separately." + (f" For {unknown} lenses it is not known." if unknown else ""),
    )


FINDERS: Final[tuple[Finder, ...]] = (
    _readable,
    _finished,
    _schema,
    _null_rules,
    _control_rules,
    _value_ranges,
    _label_consistency,
    _filtered,
    _reject_rate,
    _quality,
    _unresolved,
)
