"""What the page shows, as plain values that its template reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from lenstrain.evaluation.operating import CompletenessTable, primary_threshold
from lenstrain.evaluation.plainjson import plain
from lenstrain.pages.files import PageGallery, PagePlot

_MISSED_SHOWN = 50
_GROUPS = (("theta_e", "θE [″]"), ("src_dmag", "source Δmag"), ("lens_model", "lens model"))


def page_context(
    metrics: Mapping[str, Any],
    figures: Mapping[str, PagePlot],
    galleries: Sequence[PageGallery],
    stretch: str,
    tables: Sequence[CompletenessTable],
) -> dict[str, Any]:
    """Collect what the template reads; `metrics` is the content of metrics.json."""
    prevalences = [
        {"key": key, "one_in": f"{1 / float(key):,.0f}"}
        for key in metrics["average_precision_at_prevalence"]
    ]
    return {
        "m": metrics,
        "figures": figures,
        "completeness_figures": [
            plot for name, plot in figures.items() if name.startswith("completeness_")
        ],
        "theta_rows": _theta_rows(tables),
        "galleries": galleries,
        "stretch": stretch,
        "coverage": f"{100 * metrics['level']:g}%",
        "split": metrics["provenance"]["scores_metadata"].get("split"),
        "prevalences": prevalences,
        "cut": primary_threshold(metrics),
        "widest": _widest(metrics),
        "auroc_groups": [
            (title, metrics[f"auroc_by_{name}"])
            for name, title in _GROUPS
            if metrics.get(f"auroc_by_{name}")
        ],
        "calibration_rows": _calibration_rows(metrics),
        "missed_shown": _MISSED_SHOWN,
        "comparison_rows": _comparison_rows(metrics["comparison"]),
        "provenance": _provenance_rows(metrics["provenance"]),
    }


def _widest(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The largest Einstein radius, which a finder must get right."""
    groups = metrics.get("auroc_by_theta_e") or {}
    name = next(reversed(groups), None)
    if name is None or groups[name]["value"] is None:
        return None
    return {"name": name, "entry": groups[name]}


def _calibration_rows(metrics: Mapping[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    calibrated = metrics["calibrated"]

    def pair(*path: str) -> tuple[Any, Any]:
        return _dig(metrics, path), _dig(calibrated, path) if calibrated else None

    return [
        ("Negative log likelihood [nat]", pair("nll")),
        ("Brier score", pair("brier")),
        ("ECE, equal width", pair("ece", "equal_width")),
        ("ECE, equal mass", pair("ece", "equal_mass")),
        ("Root mean square error, debiased", pair("ece", "debiased")),
    ]


def _comparison_rows(comparison: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    if comparison is None:
        return []
    return [
        ("AUROC", comparison["auroc"]),
        ("Partial AUROC", comparison["partial_auroc"]),
        ("Average precision, this sample", comparison["average_precision"]),
        *(
            (f"Completeness at FPR {100 * float(fpr):g}%", entry)
            for fpr, entry in comparison["tpr_at_fpr"].items()
        ),
    ]


def _dig(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


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
    rows = [("Scores", provenance["scores"]), ("SHA-256", provenance["scores_sha256"])]
    if provenance["calibrate_on"]:
        rows.append(("Calibrated on", provenance["calibrate_on"]))
        rows.append(("SHA-256", provenance["calibrate_on_sha256"]))
    for name, value in provenance["scores_metadata"].items():
        if name == "members" and len(value) == 1:
            continue  # its facts stand by themselves
        rows.append((name.replace("_", " ").capitalize(), _readable(value)))
    if provenance["compared_with"]:
        rows.append(("Compared with", provenance["compared_with"]))
        rows.append(("SHA-256", provenance["compared_with_sha256"]))
    rows.append(("Versions", _readable(provenance["versions"])))
    rows.append(("Created", provenance["created"]))
    return rows


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value)
    return "none" if value is None else str(value)
