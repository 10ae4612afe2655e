"""What a finder makes of counterfactuals: which of them pass, and whether lenses rank above them.

Whoever flags extra light passes counterfactuals as often as lenses, and ranks lenses and the same
light without lensing alike: an AUROC of 0.5, within pairs and across families.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, LENSED
from lensprep.tables.columns import to_floats
from lenstrain.evaluation import bootstrap as boot
from lenstrain.evaluation.clustered import Shares, latent_correlation, no_value
from lenstrain.evaluation.completeness import AxisBins, axis_bins
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.pairs import find_pairs, wins
from lenstrain.evaluation.resampling import Resampling, draw_regions
from lenstrain.evaluation.scores import Scores
from lenstrain.scoretable import codes_of, in_order

RATIO_EDGES: Final = (0.0, 0.25, 0.5, 0.75, 1.0, math.inf)
"""Edges of the bins of theta_E over PSF FWHM."""
TELLS: Final = 0.6
"""A finder tells a lens from light where the AUROC across families surely lies above this, a
convention; 0.5 is chance."""
SMOOTH: Final = ("unlensed", "magnified", "extended")
"""Kinds of light in one piece at the place of the arc: where any of them is not told from a lens,
the finder cannot tell a lens from light. Each family has one of each, so the light of some
families has their flux. Pieces, which resolved families alone have, and neighbours are said
apart."""
FEWEST: Final = 20
"""Families below which a bin does not decide where that is."""
BRIGHT_SNR: Final = 20.0
"""Arcs of a higher peak signal-to-noise are reported apart too."""

_BINS_ALIKE = 10
"""Bins of theta_E / PSF in which lenses are alike."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class RankedPairs:
    """Pairs of a lens and a counterfactual of its family; all arrays of shape (pairs,)."""

    lens: Floats
    """Logit of the lens."""
    light: Floats
    """That of the same light without lensing."""
    kind: NDArray[np.str_]
    theta_e: Floats
    """Einstein radius of the lens, arcsec; NaN where it is not known, here and below."""
    over_psf: Floats
    """The same over the PSF FWHM."""
    arc_snr: Floats
    region: NDArray[np.int64]
    """Numbered from 0."""
    family: NDArray[np.int64]
    """Row of the lens, which the pairs of a family share."""

    def entry(self, among: Mask, level: float) -> dict[str, Any]:
        """AUROC within some of the pairs, with the interval of a share by region.

        Pairs of one family share their lens and are one observation, as rows of one image are.
        """
        won = wins(self.lens[among], self.light[among])
        region = self.region[among]
        _, first, family = np.unique(self.family[among], return_index=True, return_inverse=True)
        pairs = np.bincount(family)
        correlation = latent_correlation(np.bincount(family, won) / pairs, region[first])
        hits, rows = (np.bincount(region, each).astype(np.float64) for each in (won, None))
        share = Shares(hits, rows, np.asarray(float((pairs**2).sum())), correlation)
        entry = share.entry(level)
        # Counts of what may be half a win mean nothing, and neither does Wilson's interval.
        kept = ("value", "low", "high", "level", "reason", "n", "regions", "effective")
        return {name: entry[name] for name in kept if name in entry} | {"families": first.size}

    def across(self, among: Mask, options: EvaluationOptions) -> dict[str, Any]:
        """AUROC of the lenses of some of the pairs against all light in them, also on other hosts.

        Within a pair the noise and the host cancel, so that a score which responds to size at all
        wins, however little that is. On the sky there is one image. Where every family of these
        pairs has as many of them, flux has the same distribution in both sets, so this AUROC, too,
        cannot be raised by flux: so it is with one kind, and with those of `SMOOTH`.
        """
        families, first = np.unique(self.family[among], return_index=True)
        size = {"families": families.size}
        if not families.size:
            return no_value(options.level, "no pair of this kind") | size
        logits = np.concatenate([self.lens[among][first], self.light[among]])
        region = np.concatenate([self.region[among][first], self.region[among]])
        positive = np.arange(logits.size) < families.size
        resampling, region = draw_regions(
            positive, logits, region, options.resamples, options.seed, options.level
        )
        ranked = boot.rank_rows(positive, logits, region, resampling.n_clusters)
        return resampling.entry(boot.auroc_draws(ranked, resampling.weights)) | size


def rank_pairs(scores: Scores) -> RankedPairs:
    """Find the pairs among the counterfactuals of a table, and which of both scores higher."""
    table, logits = scores.counterfactuals or (scores.table.slice(0, 0), np.empty(0))
    pairs = find_pairs(table)

    def numbers(name: str) -> Floats:
        if name not in table.column_names:
            return np.full(pairs.lens.size, np.nan)
        return to_floats(table[name], name, scores.path)[pairs.lens]

    theta_e, psf = numbers("theta_e_arcsec"), numbers("psfsize_r")
    return RankedPairs(
        logits[pairs.lens],
        logits[pairs.light],
        pairs.kind,
        theta_e,
        np.where(psf > 0, theta_e / np.where(psf > 0, psf, 1.0), np.nan),
        numbers("arc_snr"),
        codes_of(table["region_id"])[0][pairs.lens],
        pairs.lens,
    )


def measure_counterfactuals(
    scores: Scores,
    cuts: Sequence[Mapping[str, Any]],
    resampling: Resampling,
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Measure what passes at each threshold, and the ranks within pairs.

    Parameters
    ----------
    scores : Scores
        With counterfactuals.
    cuts : sequence of mapping
        Entries of ``completeness_thresholds`` that have a threshold, the first one first.
    resampling : Resampling
        Draws of the regions of `scores`.
    options : EvaluationOptions

    Returns
    -------
    dict
        ``name``, ``threshold``, ``fpr``, ``fpr_upper`` and ``kinds`` of the first threshold,
        ``other_thresholds`` with the same of the others, and ``pairs``.
    """
    first, *others = (_passing(scores, cut, resampling, options.level) for cut in cuts)
    pairs = _measure_pairs(rank_pairs(scores), options)
    return first | {"other_thresholds": others, "pairs": pairs}


def _passing(
    scores: Scores, cut: Mapping[str, Any], resampling: Resampling, level: float
) -> dict[str, Any]:
    """What passes of each kind at one threshold, beside the false-positive rate there."""
    assert scores.counterfactuals is not None
    table, logits = scores.counterfactuals
    kind = np.array(table[COUNTERFACTUAL].to_pylist(), np.str_)
    region, flagged = codes_of(table["region_id"])[0], logits > cut["threshold"]
    upper = cut["fpr"]["upper_limit"]
    kinds: dict[str, Any] = {}
    for name, chosen in _by_kind(kind).items():
        entry = _share(flagged[chosen], logits[chosen], region[chosen]).entry(level)
        kinds[name] = {"n": entry["n"], "flagged": entry["k"], "pass_rate": entry}
        if name != LENSED:
            kinds[name]["factor"] = entry["value"] / upper if upper > 0 else None
        else:
            lensed = table.filter(pa.array(chosen))
            kinds[name]["donors"] = _donors(scores, lensed, cut, level)
            kinds[name]["lenses_alike"] = _lenses_alike(scores, lensed, cut, resampling)
    names = ("name", "threshold", "guaranteed")
    rates = {"fpr": cut["fpr"]["value"], "fpr_upper": upper}
    return {name: cut[name] for name in names} | rates | {"kinds": kinds}


def _share(
    flagged: Mask, logits: Floats, region: NDArray[np.integer], images: Floats | None = None
) -> Shares:
    """Flagged share of some rows; `images` are the rows of each distinct image, if any repeats."""
    hits, rows = (np.bincount(region, each).astype(np.float64) for each in (flagged, None))
    repeats = rows.sum() if images is None else (images**2).sum()
    return Shares(hits, rows, np.asarray(repeats), latent_correlation(logits, region))


def _donors(
    scores: Scores, lensed: pa.Table, cut: Mapping[str, Any], level: float
) -> dict[str, Any] | None:
    """Flagged share of the donors themselves, each as often as its arc; None if they are unknown.

    Their arcs are the same, on other hosts.
    """
    if not {DONOR_TASK, "task_id"} <= {*lensed.column_names}:
        return None
    tasks = scores.table["task_id"].combine_chunks()
    rows = pc.index_in(lensed[DONOR_TASK], value_set=tasks, skip_nulls=True).drop_null().to_numpy()
    if not rows.size:
        return None
    logits, images = scores.logits[rows], np.bincount(rows).astype(np.float64)
    return _share(logits > cut["threshold"], logits, scores.region[rows], images).entry(level)


def _lenses_alike(
    scores: Scores, lensed: pa.Table, cut: Mapping[str, Any], resampling: Resampling
) -> dict[str, Any] | None:
    """Completeness of the other lenses, weighted to the theta_E / PSF of those made from a donor.

    None if that is not known. If the two differ, the arcs were not drawn as those of the lenses.
    """
    names = ("theta_e_arcsec", "psfsize_r")
    if not scores.has("theta_e_over_psf"):
        return None
    theta_e, psf = (to_floats(lensed[name], name, scores.path) for name in names)
    bins = axis_bins("theta_e_over_psf", theta_e[psf > 0] / psf[psf > 0], _BINS_ALIKE)
    if bins is None:
        return None
    ours = bins.assign(theta_e / np.where(psf > 0, psf, np.nan))
    wanted = np.bincount(ours[ours >= 0], minlength=bins.size)
    theirs = bins.assign(scores.numbers("theta_e_over_psf"))
    lens = (scores.labels == 1) & (theirs >= 0)
    found = np.bincount(theirs[lens], minlength=bins.size) > 0
    if not (wanted * found).any():
        return None
    weights = wanted * found / (wanted * found).sum()
    flagged = scores.logits > cut["threshold"]
    total = np.zeros(len(resampling.weights))
    for index in np.flatnonzero(weights):
        shares = scores.shares(1, theirs == index, flagged)
        each = (resampling.weights @ counts for counts in (shares.hits, shares.rows))
        total += weights[index] * boot.ratio(*each)
    return resampling.entry(total) | {"n": int(lens.sum())}


def _measure_pairs(pairs: RankedPairs, options: EvaluationOptions) -> dict[str, Any]:
    """Both AUROCs: overall, by kind, Einstein radius and resolution; and the limit.

    Across families, "overall" is smooth light, or all if none was made: with the kinds that only
    some families have, lenses and light would differ in flux.
    """
    everything = np.ones(pairs.kind.size, bool)
    kinds = _by_kind(pairs.kind)
    smooth = np.isin(pairs.kind, SMOOTH) if not kinds.keys().isdisjoint(SMOOTH) else everything

    def measured(among: Mask) -> dict[str, Any]:
        return {
            "n": int(np.count_nonzero(among)),
            "auroc": pairs.entry(among, options.level),
            "by_kind": {
                name: pairs.entry(among & of_kind, options.level) for name, of_kind in kinds.items()
            },
            "auroc_across": pairs.across(among & smooth, options),
            "across_by_kind": {
                name: pairs.across(among & of_kind, options) for name, of_kind in kinds.items()
            },
        }

    def binned(bins: AxisBins | None, values: Floats) -> list[dict[str, Any]]:
        if bins is None:
            return []
        which = bins.assign(values)
        return [
            {
                "lo": float(low),
                "hi": float(high),
                "label": f"{low:g} or more" if math.isinf(high) else bins.label(index),
            }
            | measured(which == index)
            for index, (low, high) in enumerate(pairwise(bins.edges))
        ]

    by_ratio = binned(AxisBins("theta_e_over_psf", np.array(RATIO_EDGES)), pairs.over_psf)
    by_theta_e = binned(
        axis_bins("theta_e_arcsec", pairs.theta_e, options.axis_bins), pairs.theta_e
    )
    bright = pairs.arc_snr > BRIGHT_SNR
    limits = {
        name: tells_above([(cell["hi"], cell["across_by_kind"][name]) for cell in by_ratio])
        for name in kinds
    }
    decides = hardest(limits, _deciding(limits))
    return measured(everything) | {
        "bright": pairs.entry(bright, options.level)
        | {"auroc_across": pairs.across(bright & smooth, options), "arc_snr_above": BRIGHT_SNR},
        "by_theta_e": by_theta_e,
        "by_theta_e_over_psf": by_ratio,
        "limit": decides and decides[1].above,
        "limit_by_kind": {name: found and found.above for name, found in limits.items()},
        "words": limit_in_words(everything.size, limits),
    }


class Limit(NamedTuple):
    """theta_E / PSF from which on a finder tells a lens from light; infinity for no upper edge."""

    above: float
    """0 if it does everywhere."""
    measured: float
    """Up to where that is known; equal to `above` if it does nowhere."""
    auroc: tuple[float, float, float] | None = None
    """AUROC across families of the bin just below, with its interval; None if `above` is 0."""

    @property
    def hardness(self) -> tuple[float, float]:
        """What orders limits: up to where they were measured says nothing of how hard a kind is."""
        return self.above, -self.auroc[0] if self.auroc else 0.0


def tells_above(bins: Sequence[tuple[float, Mapping[str, Any]]]) -> Limit | None:
    """Find the highest bin whose AUROC across families may be `TELLS` or less.

    Parameters
    ----------
    bins : sequence of (float, mapping)
        Upper edge of each bin, and its entry from `RankedPairs.across`.

    Returns
    -------
    Limit or None
        Its upper edge, and that of the highest bin that decides: bins of fewer than `FEWEST`
        families, or without an interval, do not. None if no bin decides.
    """
    decided = [
        (high, (entry["value"], entry["low"], entry["high"]))
        for high, entry in bins
        if entry["families"] >= FEWEST and math.isfinite(entry["low"])
    ]
    if not decided:
        return None
    failed = [(high, auroc) for high, auroc in decided if not auroc[1] > TELLS]
    above, auroc = max(failed, default=(0.0, None))
    return Limit(above, max(high for high, _ in decided), auroc)


def _deciding(by_kind: Mapping[str, Limit | None]) -> list[str]:
    """Kinds that decide whether a finder tells a lens from light."""
    return [name for name in SMOOTH if name in by_kind] or [*by_kind]


def hardest(by_kind: Mapping[str, Limit | None], among: Iterable[str]) -> tuple[str, Limit] | None:
    """The kind among some that is hardest to tell from a lens, and its limit; None if none has."""
    known = [(name, found) for name in among if (found := by_kind[name]) is not None]
    return max(known, key=lambda item: item[1].hardness, default=None)


def limit_in_words(pairs: int, by_kind: Mapping[str, Limit | None]) -> str:
    """The limit as a sentence: that of smooth light, and that of the hardest kind if harder.

    Parameters
    ----------
    pairs : int
        Pairs of all kinds.
    by_kind : mapping
        Limit of each kind.
    """
    if not pairs:
        return "No counterfactual has the lens of its family beside it, so no pair can be ranked."
    decides, worst = hardest(by_kind, _deciding(by_kind)), hardest(by_kind, by_kind)
    if decides is None:
        smooth = " of smooth light" if worst is not None else ""
        words = (
            f"Too few pairs{smooth} to say where this finder tells a lens from light: {FEWEST} "
            "families in a bin of theta_E / PSF, from two regions or more, are needed."
        )
        return words if worst is None else f"{words} {_sentence(*worst)}."
    kind, limit = decides
    words = _sentence(kind if limit.above else "", limit)
    if worst is not None and _surely(worst[1]) > _surely(limit):
        kind, found = worst
        where = "at any" if found.above == found.measured else f"below {found.above:g}"
        words += f"; it {_verb(found)} one from {kind} light {where} ({_auroc(found)})"
    return f"{words}."


def _surely(limit: Limit) -> tuple[float, bool]:
    """`Limit.hardness` without what chance decides: whether the value itself is `TELLS` or less."""
    return limit.above, limit.auroc is not None and limit.auroc[0] <= TELLS


def _sentence(kind: str, limit: Limit) -> str:
    """Where the finder tells a lens from light of a kind, without a full stop."""
    light = f"{kind} light".lstrip()
    if limit.above == 0:
        return f"This finder tells a lens from {light} at every theta_E / PSF that was measured"
    told = f"this finder {_verb(limit)} a lens from {light}"
    asked = f"; all of it must exceed {TELLS:g}"
    if limit.above == limit.measured:
        return (
            f"{told[0].upper()}{told[1:]} at any theta_E / PSF that was measured (AUROC across "
            f"families {_auroc(limit)} in the highest bin{asked})"
        )
    return (
        f"Below theta_E / PSF = {limit.above:g} {told} (AUROC across families "
        f"{_auroc(limit)} in the bin below that{asked})"
    )


def _auroc(limit: Limit) -> str:
    assert limit.auroc is not None
    return "{:.3f} [{:.3f}, {:.3f}]".format(*limit.auroc)


def _verb(limit: Limit) -> str:
    assert limit.auroc is not None
    value, low, high = limit.auroc
    if low > 0.5 and value <= TELLS:
        return "hardly tells"
    return "cannot tell" if high <= TELLS else "is not shown to tell"


def _by_kind(kind: NDArray[np.str_]) -> dict[str, Mask]:
    """Rows of each kind."""
    return {name: kind == name for name in in_order(kind.tolist())}
