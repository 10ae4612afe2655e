"""The function behind `lenstrain evaluate`: scores in; metrics, tables, figures, report out."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep import __version__
from lensprep.errors import ProjectError
from lensprep.store import check_folder, join_uri, written_folder
from lensprep.tables.catalog import read_catalog
from lensprep.tables.reader import Uri
from lenstrain.evaluation.catalog import measure_catalog
from lenstrain.evaluation.compare import compare
from lenstrain.evaluation.examples import (
    Gallery,
    choose_galleries,
    draw_gallery,
    draw_missed,
    open_stamps,
)
from lenstrain.evaluation.measure import (
    Measurement,
    Progress,
    check_same_model,
    known_lens_notes,
    measure,
)
from lenstrain.evaluation.operating import CompletenessTable, long_table, primary_threshold
from lenstrain.evaluation.options import EvaluationOptions as EvaluationOptions
from lenstrain.evaluation.plainjson import plain
from lenstrain.evaluation.selection.figure import draw_selection
from lenstrain.evaluation.selection.files import write_selection
from lenstrain.evaluation.selection.measure import Selection, measure_selection, read_population
from lenstrain.pages import figures as plots
from lenstrain.pages.card import card_context
from lenstrain.pages.evaluation import page_context
from lenstrain.pages.files import (
    PageGallery,
    render_card,
    render_page,
    save_plot,
    write_csv,
)
from lenstrain.pages.publish import CARD_NAME, METRICS_NAME, REPORT_NAME
from lenstrain.scoring.table import (
    Scores,
    ScoresAre,
    SkyScores,
    read_scores,
    read_sky_scores,
)

FORMAT_VERSION = 2
"""Version of metrics.json; in 1 every figure had a value, whatever supported it."""

_PACKAGES = ("numpy", "scipy", "numba", "pyarrow", "matplotlib", "torch")


def evaluate(
    scores: Uri,
    out: Uri,
    *,
    calibrate_on: Uri | None = None,
    compare_with: Uri | None = None,
    catalog: Uri | None = None,
    catalog_columns: Mapping[str, str] | None = None,
    catalog_scores: Uri | None = None,
    columns: Mapping[str, str] | None = None,
    scores_are: ScoresAre | None = None,
    dataset: Uri | None = None,
    selection_function: bool = False,
    population: Uri | None = None,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a table of scores and write the report.

    Parameters
    ----------
    scores : str or path
        Any table that `lensprep.tables.reader` reads with key, label, logit (or probability) and
        region_id. This and all other places may be local or s3://.
    out : str or path
        Folder to write. An earlier evaluation there is replaced whole; any other non-empty
        folder is refused. Nothing appears there if the evaluation fails.
    calibrate_on : path, optional
        Scores of another split: calibration and thresholds are fitted there.
    compare_with : path, optional
        Another model's scores of the same stamps: differences on the same draws.
    catalog : path, optional
        Known lenses (any table in lenscat's columns), whose recall is measured.
    catalog_columns : mapping, optional
        What the catalogue calls ``name``, ``ra``, ``dec`` and ``grade`` instead.
    catalog_scores : path, optional
        Scores to find the known lenses in, labels or not; default: `scores`.
    columns : mapping, optional
        What `scores` calls some of its columns; the other tables of scores, and the population, may
        do so too.
    scores_are : {"probability", "logit"}, optional
        What the scores are, of tables that no `lenstrain infer` wrote.
    dataset : path or s3 URI, optional
        Where to read example stamps; default: the dataset named in the scores' metadata.
    selection_function : bool
        Whether to fit the selection function, and write it for others to use.
    population : path, optional
        Lenses, with weights or without, to average the selection function over.
    options : EvaluationOptions, optional
        Settings; the defaults if None.
    progress : callable, optional
        Told the name of each stage and the share of work done, from 0 to 1. It may be called
        from other threads, one at a time.

    Returns
    -------
    dict
        The content of metrics.json, with ``report`` (path of the page) added.

    Raises
    ------
    ScoresError
        If a table is unusable.
    StorageError
        If `out` is a folder that is not an evaluation, or cannot be written: said before the work.
    DatasetError
        If a given `dataset` cannot be read.
    """
    options = options or EvaluationOptions()
    tell = progress or _silent
    check_folder(out, METRICS_NAME)
    tell("Reading scores", 0.0)
    table = read_scores(scores, columns, scores_are)
    read = partial(read_scores, columns=columns, scores_are=scores_are, if_there=True)
    reference = None if calibrate_on is None else read(calibrate_on)
    rival = None if compare_with is None else read(compare_with)
    known = None if catalog is None else read_catalog(catalog, catalog_columns)
    sky = None if known is None else _sky_scores(table, catalog_scores, columns, scores_are)
    sought = None if population is None else read_population(population, table, options, columns)
    found = measure(table, reference, options, tell)
    selection = None
    found.entries["selection_function"] = None
    if selection_function:
        tell("Selection function", 0.78)
        selection = measure_selection(table, found.cuts, sought, options)
        found.entries["selection_function"] = selection.entries
        found.entries["notes"] += selection.notes
    if rival is not None:
        tell("Comparing models", 0.8)
        found.entries["comparison"] = {"other": str(rival.path)} | compare(table, rival, options)
    if known is not None and sky is not None:
        lenses, _ = measure_catalog(known, sky, found.cuts, options)
        found.entries["known_lenses"] = lenses
        found.entries["notes"] += known_lens_notes(lenses)
    tell("Drawing stamps", 0.85)
    gallery = _galleries(table, sky, found.entries, dataset, options)
    found.entries["notes"] += gallery.notes
    entries = {"format_version": FORMAT_VERSION} | found.entries
    entries["provenance"] = _provenance(table, reference, rival, options)
    content: dict[str, Any] = plain(entries)
    with written_folder(out, METRICS_NAME) as draft:
        tell("Writing the report", 0.9)
        _write(draft, table, found, selection, gallery, content)
    tell("Done", 1.0)
    return content | {"report": join_uri(out, REPORT_NAME)}


def _silent(stage: str, done: float) -> None:
    pass


def _sky_scores(
    scores: Scores,
    path: Uri | None,
    columns: Mapping[str, str] | None,
    scores_are: ScoresAre | None,
) -> SkyScores:
    """Scores in which known lenses are looked for, of the same model."""
    if path is None:
        return SkyScores(scores.path, scores.table, scores.logits, scores.metadata, scores.names)
    sky = read_sky_scores(path, columns, scores_are)
    check_same_model(scores, sky)
    return sky


@dataclass(frozen=True)
class _Galleries:
    shown: Sequence[PageGallery]
    stretch: str
    notes: list[dict[str, str]]


def _galleries(
    scores: Scores,
    sky: SkyScores | None,
    entries: Mapping[str, Any],
    dataset: Uri | None,
    options: EvaluationOptions,
) -> _Galleries:
    """Galleries from where the stamps were scored, if it can be read."""
    shown: list[PageGallery] = []
    notes: list[dict[str, str]] = []
    stretch = ""
    uri = dataset or scores.metadata.get("dataset")
    if uri is not None and options.examples:
        try:
            reader = open_stamps(str(uri), scores)
            shown = [
                PageGallery(gallery, draw_gallery(reader, scores, gallery))
                for gallery in choose_galleries(scores, options.examples)
            ]
            stretch = reader.note
        except ProjectError as error:
            if dataset is not None:
                raise
            notes.append(_no_stamps("example stamps", error))
    missed = entries["known_lenses"]["missed"] if entries.get("known_lenses") else []
    if sky is not None and missed and options.examples:
        uri = sky.metadata.get("dataset") if sky.path != scores.path else uri
        try:
            if uri is not None:
                reader = open_stamps(str(uri), sky)
                stamps = draw_missed(reader, sky, missed, 2 * options.examples)
                shown.append(PageGallery(_MISSED, stamps))
                stretch = stretch or reader.note
        except ProjectError as error:
            notes.append(_no_stamps("stamps of the known lenses", error))
    return _Galleries(shown, stretch, notes)


_MISSED = Gallery(
    "missed_known",
    "Known lenses that were missed",
    "Lowest score first. Are their arcs visible in these images at all?",
    np.empty(0, np.int64),
)


def _no_stamps(what: str, error: ProjectError) -> dict[str, str]:
    return {"severity": "info", "text": f"No {what}: {error} Give its place with --dataset."}


def _provenance(
    scores: Scores, reference: Scores | None, rival: Scores | None, options: EvaluationOptions
) -> dict[str, Any]:
    return {
        "scores": str(scores.path),
        "scores_sha256": scores.sha256,
        "calibrate_on": None if reference is None else str(reference.path),
        "calibrate_on_sha256": None if reference is None else reference.sha256,
        "compared_with": None if rival is None else str(rival.path),
        "compared_with_sha256": None if rival is None else rival.sha256,
        "scores_metadata": scores.metadata,
        "options": asdict(options),
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    found = {"lenstrain": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write(
    draft: Path,
    scores: Scores,
    found: Measurement,
    selection: Selection | None,
    galleries: _Galleries,
    content: dict[str, Any],
) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (draft / METRICS_NAME).write_text(text, encoding="utf-8")
    cells = long_table(found.completeness)
    table = pa.table({name: pa.array(column, from_pandas=True) for name, column in cells.items()})
    pq.write_table(table, draft / "completeness.parquet")
    write_csv(draft / "completeness.csv", {name: list(column) for name, column in cells.items()})
    figures = draft / "figures"
    figures.mkdir()
    drawn = _plots(scores, found)
    if selection is not None:
        write_selection(draft, selection)
        drawn.append(draw_selection(selection))
    saved = {plot.name: save_plot(plot, figures) for plot in drawn}
    page = render_page(
        page_context(content, saved, galleries.shown, galleries.stretch, found.completeness)
    )
    (draft / REPORT_NAME).write_text(page, encoding="utf-8")
    (draft / CARD_NAME).write_text(render_card(card_context(content)), encoding="utf-8")
    if content["known_lenses"]:
        rows = content["known_lenses"]["lenses"]
        names = list(rows[0]) if rows else ["name"]
        columns = {name: [row[name] for row in rows] for name in names}
        write_csv(draft / "known_lenses.csv", columns)


def _plots(scores: Scores, found: Measurement) -> list[plots.Plot]:
    entries, level = found.entries, found.entries["level"]
    cuts = {
        choice["name"]: choice["threshold"]
        for choice in entries["completeness_thresholds"]
        if choice["threshold"] is not None and math.isfinite(choice["threshold"])
    }
    reliability = {"as scored": entries["reliability"]}
    if entries["calibrated"]:
        reliability["calibrated"] = entries["calibrated"]["reliability"]
    drawn = [
        plots.draw_roc(found.band, entries["tpr_at_fpr"], level, log=True),
        plots.draw_roc(found.band, entries["tpr_at_fpr"], level, log=False),
        plots.draw_histogram(scores.labels, scores.logits, cuts),
        plots.draw_reliability(reliability, level),
        *_completeness_plots(found.completeness),
    ]
    if found.band.purity and found.band.fpr.size:
        drawn.append(plots.draw_purity(found.band, level))
    if entries.get("auroc_by_theta_e"):
        groups = entries["auroc_by_theta_e"]
        drawn.append(plots.draw_auroc_by(groups, entries["auroc"]["value"], level))
    target = primary_threshold(entries)["target_fpr"]
    for bins in entries["strata"].values():
        drawn.append(plots.draw_strata(bins, target, level))
    return drawn


def _completeness_plots(tables: Sequence[CompletenessTable]) -> list[plots.Plot]:
    """One figure for each single axis, and a map for each pair at the first threshold."""
    by_axes: dict[tuple[str, ...], list[CompletenessTable]] = {}
    for table in tables:
        by_axes.setdefault(table.axes, []).append(table)
    singles = [plots.draw_completeness(group) for axes, group in by_axes.items() if len(axes) == 1]
    maps = [plots.draw_map(group[0]) for axes, group in by_axes.items() if len(axes) == 2]
    return singles + maps
