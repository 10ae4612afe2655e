"""The figures that a reader wants first: those of the page's tiles and of the console."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lenstrain.evaluation.names import rate_text, threshold_text
from lenstrain.evaluation.operating import primary_threshold
from lenstrain.pages.page import bounds, number, percent


class Figure(NamedTuple):
    """One figure, in words."""

    name: str
    value: str
    interval: str = ""
    """In brackets, or why there is none."""
    note: str = ""


def headline(content: Mapping[str, Any]) -> list[Figure]:
    """Ranking, operating points, purity and calibration; `content` is that of metrics.json."""
    cut = primary_threshold(content)
    area, fpr = content["auroc"], cut["fpr"]
    lone = "" if content["n_regions"] > 1 else "one region"
    return [
        Figure("AUROC", number(area["value"]), bounds(area), lone),
        *(
            Figure(
                f"Completeness at {threshold_text(choice['name'])}",
                percent(choice["tpr"]["value"]),
                bounds(choice["tpr"], 1, percent),
                _kept(choice, content),
            )
            for choice in content["completeness_thresholds"]
            if choice["threshold"] is not None
        ),
        Figure(
            "False-positive rate there",
            percent(fpr["value"], 2),
            bounds(fpr, 2, percent),
            f"at most {percent(fpr['upper_limit'], 2)} (one-sided)",
        ),
        *_widest(content),
        *_purity(content, cut),
        _calibration(content),
    ]


def summary(content: Mapping[str, Any]) -> list[Figure]:
    """`headline`, then real lenses and each origin, and the gain over another model."""
    return [
        *headline(content),
        *_known_lenses(content["known_lenses"]),
        *_origins(content),
        *gains(content["comparison"]),
    ]


def remarks(content: Mapping[str, Any]) -> list[str]:
    """What belongs to the figures: lenses without shape, rates that the data cannot support."""
    rates, comparison = content["tpr_at_fpr"], content["comparison"]
    said = []
    if comparison is not None:
        said.append(f"Gains are over {comparison['other']}, on the same draws of regions.")
    if unresolved := content.get("unresolved_share"):
        limit = content["provenance"]["options"]["unresolved_below"]
        said.append(
            f"{percent(unresolved)} of the lenses are unresolved: θE below {limit:g} of the PSF "
            "FWHM."
        )
    if rates and not any(entry["supported"] for entry in rates.values()):
        largest = max(rates, key=float)
        said.append(
            f"No false-positive rate is supported: {rate_text(float(largest))} "
            f"{rates[largest]['reason']}."
        )
    return said + [
        f"No operating point for {threshold_text(choice['name'])}: {choice['reason']}."
        for choice in content["completeness_thresholds"]
        if choice["threshold"] is None
    ]


def light_remarks(content: Mapping[str, Any]) -> list[str]:
    """How often each kind of counterfactual passes, and where a lens is told from light."""
    made = content.get("counterfactuals")
    if not made:
        return []
    rates = {kind: found["pass_rate"] for kind, found in made["kinds"].items() if "factor" in found}
    lines = []
    if rates:
        upper = made["fpr_upper"]
        beside = "" if upper is None else f" (non-lenses: at most {upper:.2%})"
        lines.append(
            f"Counterfactuals that pass at the threshold for {threshold_text(made['name'])}"
            f"{beside}: " + ", ".join(f"{kind} {rate['value']:.1%}" for kind, rate in rates.items())
        )
    return [*lines, made["pairs"]["words"]]


def _kept(choice: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    if choice["guaranteed"]:
        return "frozen; rate guaranteed"
    if content["calibration_split"]:
        return "frozen; rate not guaranteed"
    return "chosen on these scores"


def _widest(content: Mapping[str, Any]) -> Iterator[Figure]:
    """The largest Einstein radius, which a finder must get right."""
    groups = content.get("auroc_by_theta_e") or {}
    name = next(reversed(groups), None)
    if name is not None and groups[name]["value"] is not None:
        entry = groups[name]
        yield Figure(
            f"AUROC at θE = {name}″",
            number(entry["value"]),
            bounds(entry),
            f"{entry['n']:,} lenses; the largest of {', '.join(groups)}",
        )


def _purity(content: Mapping[str, Any], cut: Mapping[str, Any]) -> Iterator[Figure]:
    """Purity at the first prevalence."""
    for prevalence in list(content["average_precision_at_prevalence"])[:1]:
        name, at = (
            f"Purity, 1 lens in {1 / float(prevalence):,.0f}",
            f"at {threshold_text(cut['name'])}",
        )
        entry = cut["purity"][prevalence]
        if entry["low"] is not None:
            yield Figure(name, percent(entry["value"]), bounds(entry, 1, percent), at)
        elif entry["at_least"] is not None:
            value = f"≥ {percent(entry['at_least'])}"
            yield Figure(name, value, "lower limit", f"too few non-lenses flagged {at}")
        else:
            yield Figure(name, "n/a", note=str(entry.get("reason", "")))


def _calibration(content: Mapping[str, Any]) -> Figure:
    entry = (content["calibrated"] or content)["ece"]["debiased"]
    name = "Calibration error"
    which = f"root mean square, {'calibrated' if content['calibrated'] else 'as scored'}"
    if entry["low"] == 0:  # its value is then often 0 too, which no finder has
        return Figure(name, f"≤ {number(entry['high'])}", "not shown above 0", which)
    return Figure(name, number(entry["value"]), bounds(entry), which)


def _share(entry: Mapping[str, Any]) -> tuple[str, str]:
    """How many of how many, and the interval of their share."""
    return f"{entry['k']:,} of {entry['n']:,}", bounds(entry, 1, percent)


def _known_lenses(known: Mapping[str, Any] | None) -> Iterator[Figure]:
    for cut in known["recall"] if known else ():
        if cut["all"]["n"]:
            at = f"at {threshold_text(cut['name'])}"
            yield Figure("Known lenses found", *_share(cut["all"]), at)
        else:
            yield Figure("Known lenses found", "n/a", note=cut["all"]["reason"])


def _origins(content: Mapping[str, Any]) -> Iterator[Figure]:
    """Ranking and rates of the origins beside the headline's, and how far they lie apart."""
    for name, entry in content.get("origins", {}).items():
        if name == content["origin"]:
            continue
        area, title = entry["auroc"], f"AUROC of {name} rows"
        if area["value"] is None:
            yield Figure(title, "n/a", note=area["reason"])
        else:
            yield Figure(title, number(area["value"]), bounds(area))
        for key, what in (("recall", "lenses found"), ("false_positives", "non-lenses flagged")):
            cut = entry[key][0]
            if cut["all"]["n"]:
                title = f"{name.capitalize()} {what}"
                yield Figure(title, *_share(cut["all"]), f"at {threshold_text(cut['name'])}")
    for what, found in content.get("sim_to_real", {}).items():
        title = f"Real or simulated {what.replace('_', '-')}"
        if found["value"] is None:
            yield Figure(title, "n/a", note=found.get("reason", ""))
        else:
            more = ", or more" if found["least"] else ""
            note = f"AUROC by features{more}: 0.5 if they look alike"
            yield Figure(title, number(found["value"]), bounds(found), note)


def gains(comparison: Mapping[str, Any] | None) -> Iterator[Figure]:
    """The differences to another model on the same draws, at each rate that has support."""
    if comparison is None:
        return

    yield _gain("Gain in AUROC", comparison["auroc"], 4, signed, "")
    for fpr, entry in comparison["tpr_at_fpr"].items():
        if entry["value"] is not None:
            yield _gain(
                f"Gain at FPR {rate_text(float(fpr))}", entry, 1, points, "completeness, % points: "
            )


def _gain(name: str, entry: Mapping[str, Any], digits: int, show: Any, unit: str) -> Figure:
    value, range_ = show(entry["value"], digits), bounds(entry, digits, show)
    return Figure(name, value, range_, unit + verdict(entry))


def points(value: float, digits: int) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:+.{digits}f}"


def signed(value: float, digits: int) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}"


def verdict(entry: Mapping[str, Any]) -> str:
    """What the interval of a difference shows, where more is better."""
    if entry["low"] is None or entry["low"] <= 0 <= entry["high"]:
        return "not shown to differ"
    return "better" if entry["low"] > 0 else "worse"
