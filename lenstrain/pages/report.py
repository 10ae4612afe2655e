"""What the page shows, as plain values that its template reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from lensprep.dataset.strictjson import plain
from lenstrain.evaluation import metrics
from lenstrain.evaluation.names import rate_text, threshold_text
from lenstrain.evaluation.operating import CompletenessTable, primary_threshold
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.readings import Reading
from lenstrain.pages.examples import Gallery
from lenstrain.pages.files import PagePlot
from lenstrain.pages.headline import gains, headline, points, signed, verdict
from lenstrain.pages.origins import origins_context
from lenstrain.pages.page import interval, number, percent
from lenstrain.pages.places import Link, run_name
from lenstrain.scoretable import scored_geometry

_MISSED_SHOWN = 50
_DEFAULTS = EvaluationOptions()
_TITLES = {
    "checkpoint": "Checkpoint",
    "checkpoint_sha256": "Checkpoint, SHA-256",
    "epoch": "Epoch",
    "step": "Step",
    "trained_on": "Trained on dataset",
    "dataset": "Scored dataset",
    "dataset_id": "Scored dataset, id",
    "split": "Split",
    "precision": "Precision of scoring",
    "tta": "Averaged over rotations and flips",
    "git_commit": "Code that trained, commit",
    "versions": "Versions that trained",
    "config": "Training",
}
"""What scores state of themselves, in the order of the page; anything else follows."""
_QUANTITIES = {"psfsize_r": "PSF FWHM [″]", "psfdepth_r": "Depth, 5σ [mag]"}
_GROUPS = (("theta_e", "θE [″]"), ("src_dmag", "source Δmag"), ("lens_model", "lens model"))


def page_context(
    content: Mapping[str, Any],
    figures: Mapping[str, PagePlot],
    galleries: Sequence[Gallery],
    stretch: str,
    tables: Sequence[CompletenessTable],
    readings: Sequence[Reading] = (),
    links: Sequence[Link] = (),
) -> dict[str, Any]:
    """Collect what the template reads; `content` is that of metrics.json."""
    provenance = content["provenance"]
    return {
        "m": content,
        "figures": figures,
        "completeness_figures": [
            plot for name, plot in figures.items() if name.startswith("completeness_")
        ],
        "theta_rows": _theta_rows(tables),
        "galleries": galleries,
        "stretch": stretch,
        "run": run_name(provenance["scores_metadata"], provenance["scores"]),
        "links": links,
        "readings": readings,
        "reading_of": {reading.subject: reading.text for reading in readings},
        "stamp_side": scored_geometry(provenance["scores_metadata"]).side,
        "coverage": f"{100 * content['level']:g}%",
        "split": provenance["scores_metadata"].get("split"),
        "prevalences": [
            {"key": key, "one_in": one_in, "title": f"Purity, 1 in {one_in}"}
            for key in content["average_precision_at_prevalence"]
            if (one_in := f"{1 / float(key):,.0f}")
        ],
        "cut": primary_threshold(content),
        "headline": [*headline(content), *gains(content["comparison"])],
        "auroc_groups": [
            (title, content[f"auroc_by_{name}"])
            for name, title in _GROUPS
            if content.get(f"auroc_by_{name}")
        ],
        "chosen_here": _chosen_here(content),
        "unsupported": _unsupported(content["thresholds"]),
        "quantities": _QUANTITIES,
        "area_rows": _area_rows(content),
        "calibration_rows": _calibration_rows(content),
        "missed_shown": _MISSED_SHOWN,
        "compared": _comparison(content["comparison"]),
        "origins": origins_context(content),
        "sections": _sections(content, galleries),
        "provenance": _provenance_rows(provenance),
    }


def _sections(content: Mapping[str, Any], galleries: Sequence[Gallery]) -> list[tuple[str, str]]:
    """Id and title of each section that the page has."""
    there = {
        "origins": ("Real and simulated", bool(content.get("origins"))),
        "ranking": ("Ranking", True),
        "completeness": ("Completeness", True),
        "calibration": ("Calibration", True),
        "thresholds": ("Thresholds", True),
        "strata": ("Seeing and depth", True),
        "counterfactuals": ("Counterfactuals", "counterfactuals" in content),
        "known": ("Known lenses", bool(content["known_lenses"])),
        "comparison": ("Comparison", bool(content["comparison"])),
        "stamps": ("Stamps", bool(galleries)),
        "provenance": ("Provenance", True),
        "method": ("Method", True),
    }
    return [(id, title) for id, (title, shown) in there.items() if shown]


def _chosen_here(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Completeness at the primary rate by a threshold chosen on the scores, if that differs."""
    cut = primary_threshold(content)
    for fpr, entry in content["tpr_at_fpr"].items():
        if cut["guaranteed"] and float(fpr) == cut["target_fpr"] and entry["supported"]:
            return dict(entry)
    return None


def _unsupported(thresholds: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Reasons why thresholds are not stated, each with the names of these."""
    found: dict[str, list[str]] = {}
    for choice in thresholds:
        if "tpr" not in choice:
            found.setdefault(choice["reason"], []).append(choice["name"])
    return list(found.items())


def _area_rows(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Metrics of the order of the scores, in the page's words."""
    rows = []
    for metric in metrics.METRICS:
        if metric.kind != "ranking":
            continue
        entry, note = content[metric.name], ""
        if metric.name == "partial_auroc":
            note = f", FPR ≤ {rate_text(entry['max_fpr'])} (0.5 is chance, 1 perfect)"
        rows.append((metric.title + note, entry))
        if metric.name == "auroc" and content["auroc_delong"]:
            rows.append(("AUROC, DeLong (rows taken as independent)", content["auroc_delong"]))
    return rows


def _calibration_rows(content: Mapping[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    calibrated = content["calibrated"]

    def pair(get: Callable[[Mapping[str, Any]], Any]) -> tuple[Any, Any]:
        return get(content), get(calibrated) if calibrated else None

    losses = [metric for metric in metrics.METRICS if metric.kind == "probability"]
    return [
        *((metric.title, pair(itemgetter(metric.name))) for metric in losses),
        ("ECE, equal width", pair(lambda found: found["ece"]["equal_width"])),
        ("ECE, equal mass", pair(lambda found: found["ece"]["equal_mass"])),
        ("Root mean square error, debiased", pair(lambda found: found["ece"]["debiased"])),
    ]


def _comparison(comparison: Mapping[str, Any] | None) -> dict[str, Any]:
    """Differences to the other model in the page's words, and what has none."""
    found: list[tuple[str, Any, bool]] = []
    if comparison is not None:
        found += _compared(comparison)
        apart = comparison.get("origins", {})
        for name, entries in apart.items() if len(apart) > 1 else ():
            if "reason" not in entries:
                found += [(f"{title}, {name} rows", *rest) for title, *rest in _compared(entries)]
    return {
        "rows": [_compared_row(*row) for row in found if row[1]["value"] is not None],
        "left_out": [(title, e["reason"]) for title, e, _ in found if e["value"] is None],
    }


def _compared(found: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Title and entry of each difference, and whether it is one of shares."""
    for metric in metrics.METRICS:
        if metric.kind == "ranking":
            yield metric.title, found[metric.name], False
    for metric in metrics.METRICS:
        if metric.kind == "rate":
            for fpr, entry in found[metric.name].items():
                yield f"{metric.title} {rate_text(float(fpr))}", entry, True


def _compared_row(title: str, entry: Mapping[str, Any], share: bool) -> tuple[str, ...]:
    show, digits = (percent, 1) if share else (number, 4)
    difference = interval(entry, digits, points if share else signed)
    unit = " % points" if share else ""
    both = (show(entry[name], digits) for name in ("this", "other"))
    return title, *both, difference + unit, verdict(entry)


def _theta_rows(tables: Sequence[CompletenessTable]) -> list[dict[str, Any]]:
    """Completeness by Einstein radius."""
    rows = []
    for table in tables:
        if table.axes != ("theta_e_arcsec",):
            continue
        columns, threshold = table.cells.columns(), threshold_text(table.threshold.name)
        for index in range(columns["n"].size):
            cell = {name: plain(column[index]) for name, column in columns.items()}
            label = table.cells.axes[0].label(index)
            rows.append(cell | {"label": label, "threshold": threshold})
    return rows


def _provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was scored by what, with which options and code, and when: all that is stated."""
    rows = []
    for title, name in (("Scores", "scores"), ("Calibrated on", "calibrate_on"),
                        ("Compared with", "compared_with")):  # fmt: skip
        if provenance[name]:
            rows += [(title, provenance[name]), (f"{title}, SHA-256", provenance[f"{name}_sha256"])]
    stated = dict(provenance["scores_metadata"])
    members = stated.pop("members", [])
    for index, member in enumerate(members if len(members) > 1 else [], 1):
        rows += [(f"Member {index}: {title}", text) for title, text in _stated(member)]
    rows += _stated(stated)
    chosen = {
        name: value
        for name, value in provenance["options"].items()
        if plain(getattr(_DEFAULTS, name, None)) != value
    }
    rows.append(("Options of this evaluation", _readable(chosen) if chosen else "the defaults"))
    rows.append(("Versions of this evaluation", _readable(provenance["versions"])))
    rows.append(("Created", provenance["created"]))
    return rows


def _stated(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts under titles for people: the known ones first, a row for each part of a config."""
    rows = []
    for name in (
        *(known for known in _TITLES if known in facts),
        *sorted(facts.keys() - {*_TITLES}),
    ):
        title, value = _TITLES.get(name, name.replace("_", " ").capitalize()), facts[name]
        if name == "config" and isinstance(value, Mapping):
            rows += [(f"{title}: {part}", _readable(keys)) for part, keys in value.items()]
        else:
            rows.append((title, _readable(value)))
    return rows


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        kept = {name: item for name, item in value.items() if item not in ({}, [])}
        return ", ".join(f"{name} {_readable(item)}" for name, item in kept.items())
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
