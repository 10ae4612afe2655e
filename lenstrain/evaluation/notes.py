"""What a reader must know before quoting a figure of an evaluation."""

from typing import Any

from lenstrain.evaluation.names import rate_text
from lenstrain.evaluation.operating import FEW_REGIONS
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import Scores
from lenstrain.scoretable import precisions_differ

_MANY_TIES = 1e-3
_MANY_UNRESOLVED = 0.3
_FEW_LENSES = 30


class Notes(list[dict[str, str]]):
    """Notes as metrics.json has them: ``{severity, text}`` each."""

    def info(self, text: str) -> None:
        """Add information."""
        self.append({"severity": "info", "text": text})

    def warn(self, text: str) -> None:
        """Add a warning, which a claim must not leave out."""
        self.append({"severity": "warn", "text": text})


def evaluation_notes(
    scores: Scores,
    reference: Scores | None,
    entries: dict[str, Any],
    options: EvaluationOptions,
) -> Notes:
    """What to know before quoting a figure."""
    found = Notes()
    for text in scores.notes:
        found.info(text)
    _note_origins(found, entries)
    _note_sampling(found, scores, entries, options)
    _note_reference(found, scores, reference, entries)
    tie = entries["largest_tie"]
    if tie["share"] > _MANY_TIES:
        found.warn(
            f"{tie['rows']:,} rows ({tie['share']:.1%}) share the score {tie['score']:.6g}: "
            "no threshold can separate them. Rank on float32 logits."
        )
    for fpr, entry in entries["tpr_at_fpr"].items():
        if entry["supported"] and entry["tied_at_threshold"] > 1:
            found.warn(
                f"{entry['tied_at_threshold']:,} rows are tied at the threshold of FPR "
                f"{rate_text(float(fpr))}; none of them is flagged."
            )
    unknown = entries.get("unresolved_unknown", 0)
    if unknown:
        found.info(
            f"{unknown:,} lenses have no known theta_E or seeing: whether they are resolved "
            "is not known. They are left out of the unresolved share."
        )
    if (entries.get("unresolved_share") or 0) > _MANY_UNRESOLVED:
        found.warn(
            f"{entries['unresolved_share']:.0%} of the lenses have theta_E below "
            f"{options.unresolved_below:g} of the PSF FWHM: what is found there is extra flux, "
            "not shape."
        )
    for axes, count in entries["completeness_beyond_bins"].items():
        found.info(f"{count:,} lenses lie beyond the bins of completeness by {axes}.")
    for text in entries["completeness_left_out"]:
        found.info(f"Completeness left out: {text}.")
    return found


def comparison_notes(scores: Scores, rival: Scores) -> Notes:
    """What to know about the difference between two tables of scores."""
    found = Notes()
    if precisions_differ(scores.metadata, rival.metadata):
        found.info(
            f"These scores were computed in {scores.precision}, those compared with in "
            f"{rival.precision}: the differences include rounding."
        )
    return found


def known_lens_notes(lenses: dict[str, Any]) -> Notes:
    """What to know about the recall of known lenses."""
    found = Notes()
    matched = lenses["n_matched"]
    if matched == 0:
        found.warn(
            f"None of the {lenses['n_catalog']:,} known lenses lies within "
            f"{lenses['radius_arcsec']:g} arcsec of a scored stamp that shows the sky as it "
            "is: recall is not measured."
        )
    elif matched < _FEW_LENSES:
        found.warn(f"{matched} known lenses are few: a claim needs {_FEW_LENSES} or more.")
    if lenses["n_injected_left_out"]:
        found.info(
            f"{lenses['n_injected_left_out']:,} stamps with an injected arc were not "
            "matched with known lenses."
        )
    return found


def _note_origins(found: Notes, entries: dict[str, Any]) -> None:
    if len(entries.get("origins", ())) < 2:
        return
    counts = {name: f"{entry['n']:,} {name}" for name, entry in entries["origins"].items()}
    origin = entries["origin"]
    if origin is None:
        found.warn(
            f"{' and '.join(counts.values())} rows are pooled, as asked: the figures hold for this "
            "mixture and no other. Each origin by itself is under Real and simulated."
        )
        return
    others = " and ".join(text for name, text in counts.items() if name != origin)
    found.warn(
        f"The headline figures, thresholds and completeness are of the {counts[origin]} rows "
        f"alone; the {others} rows are judged at the same thresholds, apart, under Real and "
        "simulated."
    )


def _note_sampling(
    found: Notes, scores: Scores, entries: dict[str, Any], options: EvaluationOptions
) -> None:
    if scores.n_regions == 1:
        found.warn("One region only: no interval can be drawn.")
    elif scores.n_regions < FEW_REGIONS:
        found.warn(
            f"{scores.n_regions} regions are few: intervals stated as {options.level:.0%} "
            f"hold less often, and guarantees are weak. Use {FEW_REGIONS} or more."
        )
    if scores.n_regions > 1 and not entries["auroc"]["low"] < entries["auroc"]["high"]:
        found.warn("Every draw gives the same AUROC: its interval is meaningless.")
    if options.resamples < 1000:
        found.info(f"{options.resamples} draws: the ends of the intervals are noisy.")
    if entries["n_negative_unique"] < entries["n_negative"]:
        found.info(
            f"{entries['n_negative']:,} non-lenses are {entries['n_negative_unique']:,} "
            "distinct images; only those count towards a guaranteed false-positive rate."
        )
    wanting = [
        f"{rate_text(float(fpr))} (needs {entry['negatives_needed']:,})"
        for fpr, entry in entries["tpr_at_fpr"].items()
        if not entry["supported"]
    ]
    if wanting:
        found.info(
            f"{entries['n_negative_unique']:,} distinct non-lenses, which are not all "
            f"independent, cannot support a false-positive rate of {', '.join(wanting)}."
        )


def _note_reference(
    found: Notes, scores: Scores, reference: Scores | None, entries: dict[str, Any]
) -> None:
    if reference is None:
        found.warn(
            "Thresholds are chosen on the scores they are judged on, and probabilities are not "
            "calibrated. Give --calibrate-on the scores of another split."
        )
        return
    split = entries["calibration_split"]
    by_rate = [
        choice
        for choice in entries["thresholds"]
        if choice["kind"] == "neyman_pearson" and choice["threshold"] is not None
    ]
    if split["reasons"]:
        found.warn(
            f"No threshold is guaranteed: {'; '.join(split['reasons'])}. Calibrate on a "
            "separate split."
        )
    elif withdrawn := [choice["reason"] for choice in by_rate if not choice["guaranteed"]]:
        found.warn(f"No threshold is guaranteed: {withdrawn[0]}.")
    elif split["split"] is None:
        found.info(
            "The calibration scores do not say which split they are of: whether the finder was "
            "trained on them cannot be checked."
        )
    if entries["calibration"] and entries["calibration"]["at_bound"]:
        found.warn("Calibration has no optimum on those scores, so no map is applied.")
