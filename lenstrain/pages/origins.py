"""What the page says of real and simulated rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from lenstrain.evaluation import metrics
from lenstrain.evaluation.names import rate_text, threshold_text

MOST_SHOWN = 25
"""Grades or kinds in the page's tables; all are in ``origins.csv``."""

_CLASSES = (("recall", "by_grade", "lens"), ("false_positives", "by_kind", "non-lens"))


def origins_context(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Collect what the section reads; None if all rows are simulated."""
    origins = content.get("origins")
    if origins is None:
        return None
    first, gap = next(iter(origins.values())), content.get("sim_to_real")
    return {
        "names": list(origins),
        "rows": list(_rows(origins)),
        "reasons": [
            f"{name}: {entry['unavailable']}"
            for name, entry in origins.items()
            if "unavailable" in entry
        ],
        "cuts": [
            {
                "name": cut["name"],
                "recall": list(_groups(origins, number, *_CLASSES[0][:2])),
                "false_positives": list(_groups(origins, number, *_CLASSES[1][:2])),
            }
            for number, cut in enumerate(first["recall"])
        ],
        "most": MOST_SHOWN,
        "gap": gap,
        "least": any(found.get("least") for found in (gap or {}).values()),
    }


def _rows(origins: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Title, format and one entry for each origin, of every headline measure."""
    every = list(origins.values())

    def row(title: str, shown: str, entries: list[Any]) -> tuple[str, str, list[Any]]:
        return title, shown, entries

    yield row("Lenses", "count", [entry["n_positive"] for entry in every])
    yield row("Non-lenses", "count", [entry["n_negative"] for entry in every])
    yield row("Regions", "count", [entry["n_regions"] for entry in every])
    for metric in metrics.METRICS:
        if metric.kind == "ranking":
            yield row(metric.title, "interval", [entry[metric.name] for entry in every])
    for fpr in every[0]["tpr_at_fpr"]:
        title = f"Completeness at FPR {rate_text(float(fpr))}, threshold of the origin itself"
        entries = [entry["tpr_at_fpr"][fpr] for entry in every]
        if any(entry["value"] is not None for entry in entries):  # else no origin supports it
            yield row(title, "share", entries)
    for number, cut in enumerate(every[0]["recall"]):
        yield row(
            f"Completeness at the threshold for {threshold_text(cut['name'])}",
            "share",
            [entry["recall"][number]["all"] for entry in every],
        )
        yield row(
            "False-positive rate there",
            "rate",
            [entry["false_positives"][number]["all"] for entry in every],
        )
    yield row(
        "Calibration error, root mean square",
        "interval",
        [_calibration_error(entry) for entry in every],
    )


def _calibration_error(entry: Mapping[str, Any]) -> Any:
    if "unavailable" in entry:
        return entry["auroc"]
    return (entry["calibrated"] or entry)["ece"]["debiased"]


def _groups(origins: Mapping[str, Any], number: int, key: str, by: str) -> Iterator[dict[str, Any]]:
    """Shares of one threshold by grade or kind, the largest groups of each origin first."""
    for origin, entry in origins.items():
        groups = entry[key][number][by]
        largest = sorted(groups, key=lambda name: -groups[name]["n"])[:MOST_SHOWN]
        for name in sorted(largest):
            yield {"origin": origin, "name": name, "left": len(groups) - len(largest)} | {
                "entry": groups[name]
            }


def source_columns(origins: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every share by origin, class, grade or kind, and threshold, as columns of a table."""
    names = (
        "k", "n", "regions", "value", "low", "high", "lo68", "hi68", "lo95", "hi95", "upper_limit",
        "independent_upper_limit",
    )  # fmt: skip
    heads = ("origin", "class", "group", "at", "threshold")
    columns: dict[str, list[Any]] = {name: [] for name in (*heads, *names)}
    for origin, entry in origins.items():
        for key, by, label in _CLASSES:
            for cut in entry[key]:
                for group, share in {"all": cut["all"], **cut[by]}.items():
                    facts = (origin, label, group, cut["name"], cut["threshold"])
                    for name, value in zip(heads, facts, strict=True):
                        columns[name].append(value)
                    for name in names:
                        value = share.get(name)
                        columns[name].append("" if value is None else value)
    return columns
