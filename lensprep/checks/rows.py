"""Findings about rows: can they be read, do they keep the contract, are they good stamps (pure)."""

from __future__ import annotations

from typing import Final

from lensprep.checks.finding import Finding, both_classes, counted, listing
from lensprep.checks.tally import BAD_PIXEL_LIMIT, RESOLVED_RATIO, Circumstances, Finder, Tally
from lensprep.source.listing import UNFINISHED
from lensprep.source.survey import COLUMN_BY_NAME, COLUMNS

REJECT_RATE: Final = 0.001
REJECT_RATE_BLOCKER: Final = 0.01
REJECT_GAP: Final = 0.001
"""Reject rates: passed, fatal (as ``convert --max-reject-rate``), and between the classes."""
MAX_UNRESOLVED: Final = 0.3


def _readable(tally: Tally, about: Circumstances) -> Finding:
    groups = [f"{file} ({rows} rows) {reason}" for file, rows, reason in sorted(tally.unread)]
    names = [*about.bad_files, *groups]
    return Finding(
        item="readable",
        severity="blocker",
        passed=not names,
        measured={"bad_files": len(about.bad_files), "bad_row_groups": len(groups)},
        threshold=0,
        detail=f"Cannot be read: {listing(names)}. Copy again, or convert with --skip-bad-files."
        if names
        else f"All {about.row_groups} row groups were read.",
    )


def _finished(tally: Tally, about: Circumstances) -> Finding:
    detail = (
        "The job that wrote the files has marked them as complete (_SUCCESS)."
        if about.is_marked
        else "No _SUCCESS beside the files. Many writers never leave one; of a Spark job it may "
        "mean that rows are missing."
    )
    if about.unfinished:
        detail = (
            f"There is {about.unfinished}: {UNFINISHED}. Run the job again, or, if nothing is "
            "missing, remove that; `convert` refuses it without --skip-bad-files."
        )
    return Finding(
        item="finished",
        severity="blocker" if about.unfinished else "info",
        passed=False if about.unfinished else about.is_marked or None,
        measured={"unfinished": about.unfinished, "success": about.is_marked},
        threshold=None,
        detail=detail,
    )


def _schema(tally: Tally, about: Circumstances) -> Finding:
    """A file that lacks a required column cannot be opened at all, so only values are left."""
    missing = [column.name for column in COLUMNS if column.name not in about.schema.names]
    extra = [name for name in about.schema.names if name not in COLUMN_BY_NAME]
    parts = ["Every required column is there, of the right type, in every row group."]
    if tally.misfits:
        parts = [f"{len(tally.misfits)} row groups break the contract: {sorted(tally.misfits)[0]}"]
    if missing:
        parts.append(f"Optional columns that no file has: {listing(missing)}.")
    if extra:
        parts.append(f"Extra columns, kept: {listing(extra)}.")
    if about.left_out:
        found = [f"{name} {what}" for name, what in about.left_out.items()]
        parts.append(
            f"Extra columns without a type for all files: {listing(found)}. `convert` refuses them "
            "unless they are left out with --drop-column."
        )
    return Finding(
        item="schema",
        severity="blocker" if tally.misfits or not about.left_out else "warn",
        passed=not (tally.misfits or about.left_out),
        measured={
            "columns": list(about.file_columns),
            "missing": missing,
            "extra": extra,
            "without_a_type": dict(about.left_out),
            "bad_row_groups": len(tally.misfits),
        },
        threshold="all required columns",
        detail=" ".join(parts),
    )


def _null_rules(tally: Tally, about: Circumstances) -> Finding:
    nulls = {
        column.name: sum(n for (name, _), n in tally.nulls.items() if name == column.name)
        for column in COLUMNS
        if not column.nullable and column.name in about.schema.names
    }
    nulls = {name: n for name, n in nulls.items() if n}
    required = any(COLUMN_BY_NAME[name].required for name in nulls)
    return Finding(
        item="null_rules",
        severity="blocker" if required or not nulls else "warn",
        passed=not nulls,
        measured=nulls,
        threshold=0,
        detail=f"Null where the contract allows none: {listing(counted(nulls))}."
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
        f"{listing(counted(faults))}. The contract for controls has changed, or labels are wrong."
        if faults
        else "Controls hold zero or null in every column of the injection.",
    )


def _value_ranges(tally: Tally, about: Circumstances) -> Finding:
    faults = {name: n for name, n in sorted(tally.out_of_range.items()) if n}
    return Finding(
        item="value_ranges",
        severity="warn",
        passed=not faults,
        measured=faults,
        threshold={
            name: [COLUMN_BY_NAME[name].minimum, COLUMN_BY_NAME[name].maximum] for name in faults
        },
        detail=f"Values outside the plausible range, or NaN: {listing(counted(faults))}."
        if faults
        else "Every value lies in its plausible range.",
    )


def _label_consistency(tally: Tally, about: Circumstances) -> Finding:
    faults = dict(sorted(tally.label_faults.items()))
    return Finding(
        item="label_consistency",
        severity="blocker",
        passed=not faults,
        measured=faults,
        threshold=0,
        detail="Rows whose lens_model, is_control and theta_e_arcsec do not give one label: "
        f"{listing(counted(faults))}. Conversion rejects them."
        if faults
        else "lens_model, is_control and theta_e_arcsec agree in every row.",
    )


def _filtered(tally: Tally, about: Circumstances) -> Finding:
    counts = dict(sorted(tally.filtered.items()))
    return Finding(
        item="filtered",
        severity="info",
        passed=None,
        measured=counts,
        threshold=None,
        detail=f"Conversion would leave out: {listing(counted(counts))}."
        if counts
        else "Upstream marked no row as unusable.",
    )


def _reject_rate(tally: Tally, about: Circumstances) -> Finding:
    if not about.pixels:
        return Finding(
            item="reject_rate",
            severity="info",
            passed=None,
            measured=None,
            threshold=REJECT_RATE,
            detail="Not run: stamps are decoded only with --pixels.",
        )
    rates = {}
    reasons: dict[str, int] = {}
    for label in ("0", "1"):
        bad = sum(n for (_, _, name), n in tally.undecoded.items() if name == label)
        good = sum(
            a.size for (_, name), arrays in tally.images.items() if name == label for a in arrays
        )
        rates[label] = bad / max(1, bad + good)
    for (reason, _, _), n in sorted(tally.undecoded.items()):
        reasons[reason] = reasons.get(reason, 0) + n
    worst, gap = max(rates.values()), abs(rates["0"] - rates["1"])
    return Finding(
        item="reject_rate",
        severity="blocker" if worst > REJECT_RATE_BLOCKER else "warn",
        passed=worst <= REJECT_RATE and gap <= REJECT_GAP,
        measured={"by_class": rates, "reasons": reasons},
        threshold={"rate": REJECT_RATE, "blocker": REJECT_RATE_BLOCKER, "class_gap": REJECT_GAP},
        detail=f"Stamps that conversion would reject: {listing(counted(reasons))}."
        if reasons
        else "Every stamp can be decoded and normalised.",
    )


def _quality(tally: Tally, about: Circumstances) -> Finding:
    rows = both_classes(tally.classes())
    bad = {c: tally.quality["bad_pixels", c] / rows[c] for c in ("0", "1") if rows[c]}
    weak = tally.quality["no_magnification", "1"]
    text = ", ".join(f"class {c} {share:.1%}" for c, share in bad.items())
    return Finding(
        item="stamp_quality",
        severity="info",
        passed=None,
        measured={"bad_pixels": bad, "lenses_with_magnification_below_1": weak},
        threshold=None,
        detail=f"bad_pixel_frac above {BAD_PIXEL_LIMIT}: {text or 'none'}. "
        f"{weak} lenses are not magnified.",
    )


def _unresolved(tally: Tally, about: Circumstances) -> Finding:
    total = sum(tally.resolution.values())
    unresolved = sum(n for (_, resolved), n in tally.resolution.items() if not resolved)
    share = unresolved / total if total else None
    unknown = tally.classes().get("1", 0) - total
    by_radius = {}
    for radius in sorted({radius for radius, _ in tally.resolution}):
        counts = [tally.resolution[radius, flag] for flag in (False, True)]
        by_radius[f"{radius:g}"] = counts[0] / sum(counts)
    return Finding(
        item="unresolved_share",
        severity="warn",
        passed=None if share is None else share <= MAX_UNRESOLVED,
        measured={"share": share, "unknown": unknown, "by_theta_e_arcsec": by_radius},
        threshold=MAX_UNRESOLVED,
        detail=f"Not run: none of {unknown} lenses has a theta_E and a psfsize_r."
        if share is None
        else f"{share:.1%} of lenses have theta_E below {RESOLVED_RATIO} of the PSF's FWHM "
        "(psfsize_r): what can be learnt of them is extra flux, not shape. Report them apart."
        + (f" Of {unknown} lenses it is not known." if unknown else ""),
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
