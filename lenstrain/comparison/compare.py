"""The function behind `lenstrain compare`: reads runs and reports, and compares them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lensprep.configfile import to_mapping
from lensprep.dataset.strictjson import plain
from lensprep.errors import NotFoundError, ProjectError, StorageError
from lensprep.store import Uri, check_folder, join_uri, read_file, written_folder
from lenstrain import __version__
from lenstrain.comparison.report import COMPARE_NAME, COMPARE_PAGE, write_comparison
from lenstrain.config import completed
from lenstrain.evaluation.compare import compare_apart
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.origins import judge_origins
from lenstrain.evaluation.scores import Scores, read_scores
from lenstrain.monitor.snapshot import read_snapshot
from lenstrain.pages.headline import headline
from lenstrain.pages.links import links_to, name_of, run_of
from lenstrain.pages.page import METRICS_NAME, REPORT_NAME
from lenstrain.pages.places import run_name

_KEPT = ("checkpoint", "checkpoint_sha256", "dataset", "dataset_id")
"""What is said of a run's scores, by their own words."""


@dataclass(frozen=True)
class _Compared:
    """What is known of one of the runs."""

    name: str
    """Of the run, whichever of its folders was named."""
    place: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    report: Mapping[str, Any] | None = None
    """Content of its metrics.json."""
    report_page: str = ""
    scores: Scores | None = None
    reason: str = ""
    """Why there are no scores."""


def compare_runs(
    places: Sequence[Uri], out: Uri, *, options: EvaluationOptions | None = None
) -> dict[str, Any]:
    """Compare runs, the first with each of the others, and write a page.

    Parameters
    ----------
    places : sequence of str or path
        Run folders, or folders that `lenstrain evaluate` wrote; local or s3://. The report of a run
        is looked for in its folder, as ``report``, and next to it.
    out : str or path
        Folder to write. An earlier comparison there is replaced; any other non-empty folder is
        refused.
    options : EvaluationOptions, optional
        Draws, level and rates; the defaults if None.

    Returns
    -------
    dict
        The content of compare.json, with ``report`` (path of the page) added: ``runs`` (``name``,
        ``place``, ``report_page``, ``scores``, ``reason``, digests), ``headlines`` (``name`` of a
        figure, ``values``: value, interval and note in each run's report, ``alike``: whether they
        are of one kind), ``settings`` (those that differ, a value for each run), ``curves``
        (records of the epochs of each run), ``differences`` (for each run but the first: a figure's
        difference from the first, or ``reason``).

    Raises
    ------
    StorageError
        If a place holds neither a run nor a report, or `out` holds other files.
    """
    options = options or EvaluationOptions()
    check_folder(out, COMPARE_NAME)
    found = [_read(str(place)) for place in places]
    names = _names(found)
    first, *others = found
    result: dict[str, Any] = plain(
        {
            "runs": [
                {
                    "name": name,
                    "place": one.place,
                    "report_page": one.report_page or None,
                    "scores": None if one.scores is None else str(one.scores.path),
                    "scores_sha256": None if one.scores is None else one.scores.sha256,
                    **{key: _metadata(one.report).get(key) for key in _KEPT},
                    "reason": one.reason or None,
                }
                for name, one in zip(names, found, strict=True)
            ],
            "headlines": _headlines([one.report for one in found]),
            "settings": _differing([one.settings for one in found]),
            "curves": {
                name: list(one.epochs) for name, one in zip(names, found, strict=True)
            },
            "differences": {
                name: _difference(one, first, options)
                for name, one in zip(names[1:], others, strict=True)
            },
            "level": options.level,
            "resamples": options.resamples,
            "versions": {"lenstrain": __version__},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )  # fmt: skip
    alike = {
        name: judge_origins(one.scores, None, options.pool).scores.curve
        for name, one in zip(names, found, strict=True)
        if one.scores is not None and "reason" not in result["differences"].get(name, {})
    }
    pages = [links_to({"": one.report_page}, out).get("") if one.report_page else None
             for one in found]  # fmt: skip
    rates = {float(one.settings["eval.fpr"]) for one in found if "eval.fpr" in one.settings}
    with written_folder(out, COMPARE_NAME) as draft:
        write_comparison(draft, result, pages, alike, rates)
    return result | {"report": join_uri(out, COMPARE_PAGE)}


def _read(place: str) -> _Compared:
    """A run with its report, or a report with its run."""
    content = _report(place)
    if content is None:
        run = read_snapshot(place)
        if run.status == "not started":
            raise StorageError(
                f"{place}: neither a run nor a report. Name a folder of `lenstrain train` or of "
                "`lenstrain evaluate`."
            )
        content, page = _report_of(place)
        settings = _flat(to_mapping(run.config))
        return _Compared(
            name_of(place), place, settings, run.history.epochs, content, page, *_scores(content)
        )
    metadata = _metadata(content)
    epochs: Sequence[Mapping[str, Any]] = ()
    if len(metadata.get("members", ())) < 2 and "checkpoint" in metadata:
        try:
            epochs = read_snapshot(run_of(metadata["checkpoint"])).history.epochs
        except ProjectError:
            epochs = ()  # the run lies elsewhere: its curves are not shown
    settings = _flat(completed(metadata.get("config") or {}))
    name = run_name(metadata, str(content["provenance"]["scores"]))
    page = join_uri(place, REPORT_NAME)
    return _Compared(name, place, settings, epochs, content, page, *_scores(content))


def _report(place: str) -> dict[str, Any] | None:
    """Content of a report; None if there is none."""
    path = join_uri(place, METRICS_NAME)
    try:
        found = json.loads(read_file(path))
        if not isinstance(found["provenance"]["scores_metadata"], dict):
            raise TypeError
        headline(found)
    except NotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: no report. Write it again: lenstrain evaluate") from error
    return dict(found)


def _report_of(run: str) -> tuple[dict[str, Any] | None, str]:
    """The report of a run and its page, in it or next to it, if it is of one of its checkpoints."""
    for folder in (join_uri(run, "report"), join_uri(run_of(run), "report")):
        content = _report(folder)
        if content is not None:
            checkpoint = str(_metadata(content).get("checkpoint", ""))
            if name_of(run_of(checkpoint)) == name_of(run):
                return content, join_uri(folder, REPORT_NAME)
    return None, ""


def _metadata(report: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What the scores of a report say of themselves."""
    return {} if report is None else dict(report["provenance"]["scores_metadata"])


def _scores(content: Mapping[str, Any] | None) -> tuple[Scores | None, str]:
    """The scores that a report is of, or why there are none."""
    if content is None:
        return None, "it has no folder report, in it or next to it: `lenstrain evaluate` makes one"
    origin = content["provenance"]
    try:
        scores = read_scores(origin["scores"])
    except ProjectError as error:
        return None, str(error)
    if scores.sha256 != origin["scores_sha256"]:
        return None, f"{origin['scores']} has changed since the report: lenstrain evaluate"
    return scores, ""


def _difference(one: _Compared, first: _Compared, options: EvaluationOptions) -> dict[str, Any]:
    for each in (first, one):
        if each.scores is None:
            return {"reason": f"{each.place}: {each.reason}"}
    assert one.scores is not None
    assert first.scores is not None
    try:
        judged = judge_origins(one.scores, None, options.pool)
        return compare_apart(one.scores, first.scores, judged, options)
    except ProjectError as error:
        return {"reason": str(error)}


def _names(found: Sequence[_Compared]) -> list[str]:
    """Names of the runs, or the places where those are not all different."""
    names = [one.name for one in found]
    return names if len(set(names)) == len(names) else [one.place for one in found]


def _headlines(reports: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Each figure of the tops of the reports, with what every run has of it."""
    found = [{} if one is None else {each.name: each for each in headline(one)} for one in reports]
    lines = []
    for name in dict.fromkeys(name for each in found for name in each):
        values = [None if name not in each else each[name]._asdict() for each in found]
        kinds = {re.sub(r"[\d.,%]+", "", value["note"]) for value in values if value is not None}
        lines.append({"name": name, "values": values, "alike": len(kinds) == 1})
    return lines


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in settings.items()
            if isinstance(values, Mapping) for key, value in values.items()}  # fmt: skip


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all; None where a run has none."""
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = {key: [each.get(key) for each in settings] for key in keys}
    return {key: row for key, row in sorted(rows.items()) if any(each != row[0] for each in row)}
