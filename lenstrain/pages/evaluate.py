"""The function behind `lenstrain evaluate`: from scores to metrics, tables, figures, report."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lensprep import __version__
from lensprep.dataset import Geometry
from lensprep.dataset.strictjson import plain
from lensprep.errors import OutOfMemoryError, ProjectError, error_line
from lensprep.store import Uri, check_folder, join_uri, written_folder
from lensprep.tables.catalog import read_catalog
from lenstrain import figures as plots
from lenstrain.evaluation.catalog import measure_catalog
from lenstrain.evaluation.compare import compare_apart
from lenstrain.evaluation.counterfactuals import TELLS
from lenstrain.evaluation.measure import (
    Measurement,
    Progress,
    check_same_model,
    measure,
)
from lenstrain.evaluation.notes import Notes, comparison_notes, known_lens_notes
from lenstrain.evaluation.operating import CompletenessTable, long_table, primary_threshold
from lenstrain.evaluation.options import EvaluationOptions as EvaluationOptions
from lenstrain.evaluation.readings import Reading, read_figures
from lenstrain.evaluation.scores import Scores, read_scores
from lenstrain.evaluation.selection.files import write_selection
from lenstrain.evaluation.selection.measure import Selection, measure_selection, read_population
from lenstrain.pages.card import card_context
from lenstrain.pages.examples import Gallery, example_galleries, missed_gallery, open_stamps
from lenstrain.pages.files import save_plot, write_csv
from lenstrain.pages.origins import source_columns
from lenstrain.pages.page import CARD_NAME, METRICS_NAME, REPORT_NAME, render
from lenstrain.pages.places import Link, links
from lenstrain.pages.report import page_context
from lenstrain.pages.selection import draw_selection
from lenstrain.scoretable import ScoresAre, SkyScores, read_sky_scores, scored_geometry

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
        region_id. This and all others may be local or s3://.
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
        Names of the catalogue's columns ``name``, ``ra``, ``dec`` and ``grade``, if they differ.
    catalog_scores : path, optional
        Scores to find the known lenses in, labels or not; default: `scores`.
    columns : mapping, optional
        Names of columns of `scores` that differ from ours; the other tables of scores and the
        population may use either.
    scores_are : {"probability", "logit"}, optional
        Kind of the scores in tables that `lenstrain infer` did not write.
    dataset : path or s3 URI, optional
        Where to read example stamps; default: the dataset named in the scores' metadata.
    selection_function : bool
        Whether to fit the selection function, and write it for others to use.
    population : path, optional
        Lenses, with weights or without, to average the selection function over.
    options : EvaluationOptions, optional
        Settings; the defaults if None.
    progress : callable, optional
        Called with the name of the stage that begins and the share of the work done, from 0 to 1;
        from other threads too, one at a time.

    Returns
    -------
    dict
        The content of metrics.json, with ``report`` (path of the page) added.

    Raises
    ------
    ScoresError
        If a table is unusable.
    StorageError
        If `out` holds other files, or cannot be written; raised before the work.
    DatasetError
        If a given `dataset` cannot be read.
    OutOfMemoryError
        If the example stamps do not fit.
    """
    options = options or EvaluationOptions()
    tell = progress or (lambda stage, done: None)
    check_folder(out, METRICS_NAME)
    tell("Reading scores", 0.0)
    table = read_scores(scores, columns, scores_are)
    read = partial(read_scores, columns=columns, scores_are=scores_are, if_there=True)
    reference = None if calibrate_on is None else read(calibrate_on)
    rival = None if compare_with is None else read(compare_with)
    known = None if catalog is None else read_catalog(catalog, catalog_columns)
    sky: SkyScores | None = None
    if known is not None:
        sky = table
        if catalog_scores is not None:
            sky = read_sky_scores(catalog_scores, columns, scores_are)
            check_same_model(table, sky)
    sought = None if population is None else read_population(population, table, options, columns)
    found = measure(table, reference, options, tell)
    headline = found.judged.scores
    if len(found.judged.apart) > 1:
        tell("Real against simulated", 0.77)
        from lenstrain.evaluation.gap import sim_to_real  # scikit-learn takes a second to import

        found.entries["sim_to_real"] = sim_to_real(table, options)
    selection = None
    found.entries["selection_function"] = None
    if selection_function:
        tell("Selection function", 0.78)
        selection = measure_selection(headline, found.cuts, sought, options)
        found.entries["selection_function"] = selection.entries
        found.entries["notes"] += selection.notes
    if rival is not None:
        tell("Comparing models", 0.8)
        compared = compare_apart(table, rival, found.judged, options)
        found.entries["comparison"] = {"other": str(rival.path)} | compared
        found.entries["notes"] += comparison_notes(table, rival)
    if known is not None and sky is not None:
        lenses = measure_catalog(known, sky, found.cuts, options)
        found.entries["known_lenses"] = lenses
        found.entries["notes"] += known_lens_notes(lenses)
    tell("Drawing stamps", 0.85)
    known_lenses = found.entries["known_lenses"]
    size = options.examples
    try:
        galleries, stretch, notes = _galleries(headline, sky, known_lenses, dataset, size)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"Drawing {size} example stamps at a time ran out of memory: {error_line(error)}. Set "
            "examples lower; with 0 the report has none."
        ) from error
    found.entries["notes"] += notes
    entries = {"format_version": FORMAT_VERSION} | found.entries
    entries["provenance"] = _provenance(table, reference, rival, options)
    content: dict[str, Any] = plain(entries)
    with written_folder(out, METRICS_NAME) as draft:
        tell("Writing the report", 0.9)
        near = links(content["provenance"]["scores_metadata"], out)
        _write(draft, found, selection, galleries, stretch, content, near)
    tell("Done", 1.0)
    return content | {"report": join_uri(out, REPORT_NAME)}


def _galleries(
    scores: Scores,
    sky: SkyScores | None,
    known_lenses: Mapping[str, Any] | None,
    dataset: Uri | None,
    size: int,
) -> tuple[list[Gallery], str, Notes]:
    """Galleries from where the stamps were scored, how they were drawn, and why any are missing."""
    shown: list[Gallery] = []
    stretch, notes = "", Notes()
    uri = dataset or scores.metadata.get("dataset")
    if not size:
        return shown, stretch, notes
    try:
        if uri is not None:
            reader = open_stamps(str(uri), scores)
            shown, stretch = example_galleries(reader, scores, size), reader.note
    except ProjectError as error:
        if dataset is not None:
            raise
        notes.info(f"No example stamps: {error} Say where it is with --dataset.")
    if sky is not None and known_lenses and known_lenses["missed"]:
        uri = sky.metadata.get("dataset") if sky.path != scores.path else uri
        try:
            if uri is not None:
                reader = open_stamps(str(uri), sky)
                shown.append(missed_gallery(reader, sky, known_lenses["missed"][: 2 * size]))
                stretch = stretch or reader.note
        except ProjectError as error:
            notes.info(f"No stamps of the known lenses: {error} Say where it is with --dataset.")
    return shown, stretch, notes


def _provenance(
    scores: Scores, reference: Scores | None, rival: Scores | None, options: EvaluationOptions
) -> dict[str, Any]:
    found = {}
    for name, table in (("scores", scores), ("calibrate_on", reference), ("compared_with", rival)):
        found[name] = None if table is None else str(table.path)
        found[f"{name}_sha256"] = None if table is None else table.sha256
    return found | {
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
    found: Measurement,
    selection: Selection | None,
    galleries: Sequence[Gallery],
    stretch: str,
    content: dict[str, Any],
    near: Sequence[Link],
) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (draft / METRICS_NAME).write_text(text, encoding="utf-8")
    cells = long_table(found.completeness)
    table = pa.table({name: pa.array(column, from_pandas=True) for name, column in cells.items()})
    pq.write_table(table, draft / "completeness.parquet")
    write_csv(draft / "completeness.csv", {name: list(column) for name, column in cells.items()})
    figures = draft / "figures"
    figures.mkdir()
    scores = found.judged.scores
    geometry = scored_geometry(scores.metadata)
    drawn = _plots(scores, found, geometry)
    if selection is not None:
        write_selection(draft, selection)
        drawn.append(draw_selection(selection, geometry))
    saved = {plot.name: save_plot(plot, figures) for plot in drawn}
    readings = _readings(content, found)
    shown = page_context(content, saved, galleries, stretch, found.completeness, readings, near)
    (draft / REPORT_NAME).write_text(render("report.html", shown), encoding="utf-8")
    card = render("model_card.md", card_context(content))
    (draft / CARD_NAME).write_text(card, encoding="utf-8")
    if "origins" in content:
        write_csv(draft / "origins.csv", source_columns(content["origins"]))
    if content["known_lenses"]:
        rows = content["known_lenses"]["lenses"]
        names = list(rows[0]) if rows else ["name"]
        columns = {name: [row[name] for row in rows] for name in names}
        write_csv(draft / "known_lenses.csv", columns)


def _readings(content: Mapping[str, Any], found: Measurement) -> list[Reading]:
    scores = found.judged.scores
    among = scores.labels == 0
    region = scores.table["region_id"].filter(pa.array(among)).to_numpy()
    flagged = scores.logits[among] > primary_threshold(content)["threshold"]
    return read_figures(content, found.completeness, region, flagged)


def _plots(scores: Scores, found: Measurement, geometry: Geometry) -> list[plots.Plot]:
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
        *_completeness_plots(found.completeness, geometry),
    ]
    if found.band.purity and found.band.fpr.size:
        drawn.append(plots.draw_purity(found.band, level))
    if entries.get("auroc_by_theta_e"):
        groups = entries["auroc_by_theta_e"]
        drawn.append(plots.draw_auroc_by(groups, entries["auroc"]["value"], level))
    made = entries.get("counterfactuals")
    if made is not None and any(cell["n"] for cell in made["pairs"]["by_theta_e_over_psf"]):
        drawn.append(plots.draw_pairs(made["pairs"], TELLS, level))
    target = primary_threshold(entries)["target_fpr"]
    for bins in entries["strata"].values():
        drawn.append(plots.draw_strata(bins, target, level, geometry))
    return drawn


def _completeness_plots(
    tables: Sequence[CompletenessTable], geometry: Geometry
) -> list[plots.Plot]:
    """One figure for each single axis, and a map for each pair at the first threshold."""
    by_axes: dict[tuple[str, ...], list[CompletenessTable]] = {}
    for table in tables:
        by_axes.setdefault(table.axes, []).append(table)
    singles = [plots.draw_completeness(group, geometry)
               for axes, group in by_axes.items() if len(axes) == 1]  # fmt: skip
    maps = [plots.draw_map(group[0], geometry) for axes, group in by_axes.items() if len(axes) == 2]
    return singles + maps
