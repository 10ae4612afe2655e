"""What the page shows, as plain values that its template reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from lensprep.dataset.strictjson import plain
from lenstrain.evaluation import metrics
from lenstrain.evaluation.operating import CompletenessTable, primary_threshold
from lenstrain.pages.examples import Gallery
from lenstrain.pages.files import PagePlot
from lenstrain.pages.origins import origins_context
from lenstrain.scoretable import scored_geometry

_MISSED_SHOWN = 50
_GROUPS = (("theta_e", "θE [″]"), ("src_dmag", "source Δmag"), ("lens_model", "lens model"))


def page_context(
    content: Mapping[str, Any],
    figures: Mapping[str, PagePlot],
    galleries: Sequence[Gallery],
    stretch: str,
    tables: Sequence[CompletenessTable],
) -> dict[str, Any]:
    """Collect what the template reads; `content` is that of metrics.json."""
    return {
        "m": content,
        "figures": figures,
        "completeness_figures": [
            plot for name, plot in figures.items() if name.startswith("completeness_")
        ],
        "theta_rows": _theta_rows(tables),
        "galleries": galleries,
        "stretch": stretch,
        "stamp_side": scored_geometry(content["provenance"]["scores_metadata"]).side,
        "coverage": f"{100 * content['level']:g}%",
        "split": content["provenance"]["scores_metadata"].get("split"),
        "prevalences": [
            {"key": key, "one_in": f"{1 / float(key):,.0f}"}
            for key in content["average_precision_at_prevalence"]
        ],
        "cut": primary_threshold(content),
        "widest": _widest(content),
        "auroc_groups": [
            (title, content[f"auroc_by_{name}"])
            for name, title in _GROUPS
            if content.get(f"auroc_by_{name}")
        ],
        "area_rows": _area_rows(content),
        "calibration_rows": _calibration_rows(content),
        "missed_shown": _MISSED_SHOWN,
        "comparison_rows": _comparison_rows(content["comparison"]),
        "origins": origins_context(content),
        "provenance": _provenance_rows(content["provenance"]),
    }


def _widest(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The largest Einstein radius, which a finder must get right."""
    groups = content.get("auroc_by_theta_e") or {}
    name = next(reversed(groups), None)
    if name is None or groups[name]["value"] is None:
        return None
    return {"name": name, "entry": groups[name]}


def _area_rows(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Metrics of the order of the scores, in the page's words."""
    rows = []
    for metric in metrics.METRICS:
        if metric.kind != "ranking":
            continue
        entry, note = content[metric.name], ""
        if metric.name == "partial_auroc":
            note = f", FPR ≤ {100 * entry['max_fpr']:g}% (0.5 is chance, 1 perfect)"
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


def _comparison_rows(comparison: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    if comparison is None:
        return []
    rows = list(_compared(comparison))
    apart = comparison.get("origins", {})
    for name, found in apart.items() if len(apart) > 1 else ():
        if "reason" not in found:
            rows += [(f"{title}, {name} rows", entry) for title, entry in _compared(found)]
    return rows


def _compared(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for metric in metrics.METRICS:
        if metric.kind == "ranking":
            yield metric.title, found[metric.name]
    for metric in metrics.METRICS:
        if metric.kind == "rate":
            for fpr, entry in found[metric.name].items():
                yield f"{metric.title} {100 * float(fpr):g}%", entry


def _theta_rows(tables: Sequence[CompletenessTable]) -> list[dict[str, Any]]:
    """Completeness by Einstein radius."""
    rows = []
    for table in tables:
        if table.axes != ("theta_e_arcsec",):
            continue
        columns = table.cells.columns()
        for index in range(columns["n"].size):
            cell = {name: plain(column[index]) for name, column in columns.items()}
            label = table.cells.axes[0].label(index)
            rows.append(cell | {"label": label, "threshold": table.threshold.name})
    return rows


def _provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for title, name in (("Scores", "scores"), ("Calibrated on", "calibrate_on"),
                        ("Compared with", "compared_with")):  # fmt: skip
        if provenance[name]:
            rows += [(title, provenance[name]), ("SHA-256", provenance[f"{name}_sha256"])]
    for name, value in provenance["scores_metadata"].items():
        if name == "members" and len(value) == 1:
            continue  # its facts stand by themselves
        rows.append((name.replace("_", " ").capitalize(), _readable(value)))
    rows.append(("Versions", _readable(provenance["versions"])))
    rows.append(("Created", provenance["created"]))
    return rows


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value)
    return "none" if value is None else str(value)
