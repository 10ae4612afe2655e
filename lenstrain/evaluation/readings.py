"""What the figures of an evaluation say, in words, where they say it clearly enough.

Every sentence has a test behind it, and `stated` holds all that one page could say to 5% together
(Holm 1979): where nothing differs, at most one page in twenty says that something does. Silence is
no claim that nothing is there; *flat* is one, and needs intervals that are narrow enough.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from lensprep.dataset.layout import LENSED
from lenstrain.evaluation.names import threshold_text
from lenstrain.evaluation.operating import CompletenessTable, primary_threshold

ERROR_RATE = 0.05
"""Largest chance that a page states a difference where there is none."""
FLAT_WITHIN = 0.1
"""Width of the band that must hold every bin, with its interval, for completeness to be flat."""
CALIBRATED_WITHIN = 0.03
"""Largest calibration error, with its interval, of scores that are called calibrated."""
_FEWEST_FLAGGED = 10
_MOST_OF_ALL = 0.5
"""Share of the flagged non-lenses in one region that is worth a sentence."""

_QUANTITIES = {
    "theta_e_arcsec": ("the Einstein radius", "″"),
    "psfsize_r": ("poorer seeing (PSF FWHM)", "″"),
    "psfdepth_r": ("depth", " mag"),
    "arc_snr": ("the arc’s signal-to-noise", ""),
    "src_dmag": ("source magnitude (less the lens’s)", " mag"),
    "theta_e_over_psf": ("Einstein radius over PSF FWHM", ""),
}


@dataclass(frozen=True)
class Reading:
    """One sentence, and how likely it is by chance."""

    about: str
    """Section of the page: counterfactuals, completeness, strata, calibration or thresholds."""
    subject: str
    """What it says something of, once: the name of a figure if one shows it."""
    text: str
    p: float
    """Probability of such figures where nothing differs; 1 if nothing is said to differ."""


@dataclass(frozen=True)
class Bins:
    """Shares in the bins of one quantity, with their intervals; arrays of shape (n_bins,)."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    level: float
    """Coverage of each interval."""
    labels: Sequence[str]

    @classmethod
    def of(
        cls, value: ArrayLike, low: ArrayLike, high: ArrayLike, level: float, labels: Sequence[str]
    ) -> "Bins":
        """Those of the bins that have a value and an interval, which is no point."""
        columns = np.array([value, low, high], np.float64)
        kept = np.flatnonzero(np.isfinite(columns).all(axis=0) & (columns[1] < columns[2]))
        values, lows, highs = columns[:, kept]
        return cls(values, lows, highs, level, [labels[index] for index in kept.tolist()])

    @classmethod
    def of_entries(
        cls, entries: Sequence[Mapping[str, Any]], level: float, labels: Sequence[str]
    ) -> "Bins":
        """Those of entries of metrics.json."""
        value, low, high = ([entry[end] for entry in entries] for end in ("value", "low", "high"))
        return cls.of(value, low, high, level, labels)

    @property
    def below(self) -> NDArray[np.float64]:
        """How far each value reaches down, in standard errors' units."""
        return np.maximum(self.value - self.low, 0) / self._quantile

    @property
    def above(self) -> NDArray[np.float64]:
        """How far each value reaches up, in standard errors' units."""
        return np.maximum(self.high - self.value, 0) / self._quantile

    @property
    def _quantile(self) -> float:
        return float(special.ndtri((1 + self.level) / 2))


def contrast(
    bins: Bins, weights: ArrayLike, values: ArrayLike | None = None
) -> tuple[float, float]:
    """A weighted sum of the bins, and its two-sided p-value against zero.

    Intervals may be skew: each bin counts with the side that could bring the sum to zero (MOVER
    [1]_). Bins that share regions vary together, which makes a contrast less variable than taken
    here.

    Parameters
    ----------
    bins : Bins
        Shares with intervals.
    weights : array_like, shape (n_bins,)
        Weight of each bin.
    values : array_like, shape (n_bins,), optional
        What is summed, if not the shares: such as shares less a constant each.

    Returns
    -------
    total, p : float
        p is 1 where nothing is known.

    References
    ----------
    .. [1] Zou, Huang & Zhang 2009, Comput. Stat. Data Anal. 53, 1080.
    """
    c = np.asarray(weights, np.float64)
    total = float(c @ (bins.value if values is None else np.asarray(values, np.float64)))
    # Towards zero: what adds to the sum could be less, what takes from it could be more.
    side = np.where((c > 0) == (total > 0), bins.below, bins.above)
    error = float(np.sqrt(np.sum((c * side) ** 2)))
    return total, 1.0 if error == 0 else float(2 * special.ndtr(-abs(total) / error))


def trend(bins: Bins) -> tuple[float, float]:
    """Slope of the shares along the order of the bins, to its sign, and its p-value."""
    order = np.arange(bins.value.size, dtype=np.float64)
    return contrast(bins, order - order.mean()) if order.size > 1 else (0.0, 1.0)


def difference(bins: Bins) -> float:
    """p-value that all bins have one share; 1 with fewer than three bins."""
    if bins.value.size < 3:
        return 1.0
    error = np.maximum(bins.below, bins.above)
    if not np.all(error > 0):
        return 1.0
    weight = error**-2
    mean = np.sum(weight * bins.value) / np.sum(weight)
    return float(stats.chi2.sf(np.sum(weight * (bins.value - mean) ** 2), bins.value.size - 1))


def stated(candidates: Iterable[Reading], error_rate: float = ERROR_RATE) -> list[Reading]:
    """Those of the candidates that hold together, in their own order: Holm's step-down test."""
    found = list(candidates)
    kept: set[int] = set()
    for rank, index in enumerate(sorted(range(len(found)), key=lambda index: found[index].p)):
        if found[index].p > error_rate / (len(found) - rank):
            break
        kept.add(index)
    return [reading for index, reading in enumerate(found) if index in kept]


def read_figures(
    content: Mapping[str, Any],
    tables: Sequence[CompletenessTable],
    region: ArrayLike = (),
    flagged: ArrayLike = (),
) -> list[Reading]:
    """Sentences on counterfactuals, completeness, false positives, ranking and calibration.

    Parameters
    ----------
    content : mapping
        That of metrics.json.
    tables : sequence of CompletenessTable
        Completeness; only tables of one axis at the primary threshold are read.
    region, flagged : array_like, shape (n_non_lenses,)
        Region of each non-lens, and whether it is flagged at the primary threshold.
    """
    cut = primary_threshold(content)
    made = content.get("counterfactuals")
    candidates = _passing(made, content["level"]) if made else []
    told = made["pairs"]["words"] if made else ""
    pairs = [Reading("counterfactuals", "pairs_theta_e_over_psf", told, 1.0)] if made else []
    flat: list[Reading] = []
    for table in tables:
        if len(table.axes) == 1 and table.threshold.name == cut["name"]:
            axis, columns = table.cells.axes[0], table.cells.columns()
            labels = [axis.label(index) for index in range(axis.size)]
            bins = Bins.of(columns["completeness"], columns["region_lo95"],
                           columns["region_hi95"], 0.95, labels)  # fmt: skip
            subject = f"completeness_{axis.name}"
            candidates += _along("completeness", subject, "Completeness", axis.name, bins, ".1%")
            joint = Bins.of(columns["completeness"], columns["joint_lo95"],
                            columns["joint_hi95"], 0.95, labels)  # fmt: skip
            flat += _flat(axis.name, joint)
    for name, entries in content["strata"].items():
        labels = [entry["label"] for entry in entries]
        for key, what, form in (
            ("fpr", "The false-positive rate", ".2%"),
            ("auroc", "AUROC", ".3f"),
        ):
            bins = Bins.of_entries([entry[key] for entry in entries], content["level"], labels)
            candidates += _along("strata", f"{key}_{name}", what, name, bins, form)
    candidates += _calibration(content)
    candidates += _one_region(np.asarray(region), np.asarray(flagged, np.bool_))
    # The first on a subject says most: a trend more than a difference, or a band it stays in.
    found: dict[tuple[str, str], Reading] = {}
    for reading in (*pairs, *stated(candidates), *flat, *_calibrated(content), *_too_few(content)):
        found.setdefault((reading.about, reading.subject), reading)
    return list(found.values())


def _passing(made: Mapping[str, Any], level: float) -> list[Reading]:
    """Whether light passes as a lens, and whether the arcs are drawn as those of the lenses."""
    found = []
    light = {name: entry for name, entry in made["kinds"].items() if entry.get("factor")}
    if light:
        kind, entry = max(light.items(), key=lambda item: float(item[1]["factor"]))
        rate, limit = entry["pass_rate"], made["fpr_upper"]
        above, p = _difference([rate], [1], level, less=2 * limit)
        text = (
            f"Of {kind} light without a lens, {rate['value']:.1%} is flagged at the threshold for "
            f"{threshold_text(made['name'])}, {entry['factor']:.3g} times the upper limit of "
            f"the false-positive rate ({100 * limit:.2g}%): it is taken for a lens."
        )
        # Any of the kinds could have been the one.
        p = min(1.0, len(light) * p) if above > 0 else 1.0
        found.append(Reading("counterfactuals", "pass_rate", text, p))
    arcs = made["kinds"].get(LENSED, {})
    for key, whose in (("donors", "the donors of their arcs"),
                       ("lenses_alike", "the lenses of the same θE / PSF")):  # fmt: skip
        if arcs.get(key):
            rates = [arcs["pass_rate"], arcs[key]]
            more, p = _difference(rates, [1, -1], level)
            text = (
                f"Counterfactuals with a lensed arc are flagged {'more' if more > 0 else 'less'} "
                f"often than {whose} ({rates[0]['value']:.1%} against {rates[1]['value']:.1%}): "
                "they are not drawn alike, and what counterfactuals show holds for their own arcs."
            )
            found.append(Reading("counterfactuals", LENSED, text, p))
    return found


def _difference(
    entries: Sequence[Mapping[str, Any]], weights: Sequence[int], level: float, less: float = 0.0
) -> tuple[float, float]:
    """`contrast` of entries with intervals, each less a constant; p is 1 if one has no interval."""
    bins = Bins.of_entries(entries, level, [""] * len(entries))
    if len(bins.labels) < len(entries):
        return 0.0, 1.0
    return contrast(bins, weights, bins.value - less)


def _along(about: str, subject: str, what: str, name: str, bins: Bins, form: str) -> list[Reading]:
    """A trend along a quantity, and differences between its bins: two tests."""
    if bins.value.size < 2:
        return []
    words, unit = _QUANTITIES.get(name, (name, ""))
    slope, p = trend(bins)
    first, last, low, high = (
        f"{bins.value[index]:{form}} at {bins.labels[index]}{unit}"
        for index in (0, -1, int(np.argmin(bins.value)), int(np.argmax(bins.value)))
    )
    verb = "rises" if slope > 0 else "falls"
    return [
        Reading(about, subject, f"{what} {verb} with {words}: from {first} to {last}.", p),
        Reading(
            about,
            subject,
            f"{what} differs with {words}, without a trend: {low}, {high}.",
            difference(bins),
        ),
    ]


def _flat(name: str, joint: Bins) -> list[Reading]:
    if joint.value.size < 2 or joint.high.max() - joint.low.min() > FLAT_WITHIN:
        return []
    words = _QUANTITIES.get(name, (name, ""))[0]
    text = (
        f"Completeness is flat in {words}: between {joint.low.min():.1%} and "
        f"{joint.high.max():.1%} in every bin, with 95% confidence for all bins at once."
    )
    return [Reading("completeness", f"completeness_{name}", text, 1.0)]


def _calibration(content: Mapping[str, Any]) -> list[Reading]:
    """Whether probabilities are too extreme, too cautious, or off on the whole: two tests."""
    table = (content["calibrated"] or content)["reliability"]
    mean = np.asarray(table["mean_probability"], np.float64)
    level = content["level"]
    bins = Bins.of(table["observed"], table["low"], table["high"], level, [""] * mean.size)
    if mean.size < 3 or bins.value.size < mean.size:
        return []
    rows = np.asarray(table["n"], np.float64) / np.sum(table["n"])
    off = bins.value - mean
    offset, p_offset = contrast(bins, rows, off)
    slope, p_slope = contrast(bins, rows * (mean - rows @ mean), off)
    which = "Calibrated probabilities" if content["calibrated"] else "Probabilities as scored"
    extreme = (
        "overconfident: lenses are fewer than stated where they are high, and more where they are "
        "low" if slope < 0 else
        "underconfident: lenses are more than stated where they are high, and fewer where they are "
        "low"
    )  # fmt: skip
    high = "low" if offset > 0 else "high"
    return [
        Reading("calibration", "reliability", f"{which} are {extreme}.", p_slope),
        Reading(
            "calibration",
            "reliability",
            f"{which} are too {high}: {rows @ mean:.1%} lenses stated on average, "
            f"{rows @ bins.value:.1%} found.",
            p_offset,
        ),
    ]


def _calibrated(content: Mapping[str, Any]) -> list[Reading]:
    error = (content["calibrated"] or content)["ece"]["debiased"]
    if error["high"] is None or error["high"] > CALIBRATED_WITHIN:
        return []
    text = (
        f"Probabilities are calibrated to within {error['high']:.1%} ({content['level']:.0%} "
        "limit of the root mean square error)."
    )
    return [Reading("calibration", "reliability", text, 1.0)]


def _too_few(content: Mapping[str, Any]) -> list[Reading]:
    """Whether there are too few flagged non-lenses to see where they come from."""
    counts = [sum(entry["fpr"]["k"] for entry in bins) for bins in content["strata"].values()]
    if not counts or max(counts) >= _FEWEST_FLAGGED:
        return []
    text = (
        f"{max(counts)} flagged non-lenses are too few to tell whether the false-positive rate "
        "depends on seeing or depth."
    )
    return [Reading("strata", "", text, 1.0)]


def _one_region(region: NDArray[Any], flagged: NDArray[np.bool_]) -> list[Reading]:
    """Whether one region has most of the flagged non-lenses, far beyond its share of them all."""
    total = int(np.count_nonzero(flagged))
    names, index = np.unique(region, return_inverse=True)
    if total < _FEWEST_FLAGGED or names.size < 2:
        return []
    each, found = np.bincount(index), np.bincount(index[flagged], minlength=names.size)
    most, share = int(found.argmax()), each[int(found.argmax())] / region.size
    # Any of the regions could have been the one.
    p = min(1.0, names.size * float(stats.binom.sf(found[most] - 1, total, share)))
    if found[most] <= _MOST_OF_ALL * total:
        p = 1.0
    text = (
        f"One region dominates the false positives: {found[most]:,} of {total:,} flagged "
        f"non-lenses lie in region {names[most]}, which has {share:.1%} of the non-lenses."
    )
    return [Reading("thresholds", "", text, p)]
