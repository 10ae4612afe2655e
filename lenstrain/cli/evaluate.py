"""`lenstrain evaluate`: how good scores are."""

from __future__ import annotations

from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.errors import count_text
from lensprep.terminal import LOCATION, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import (
    catalog_columns_of,
    columns_option,
    json_option,
    report,
    score_columns_of,
    scores_options,
    set_option,
)


@click.command()
@click.argument("scores", type=LOCATION)
@click.option(
    "--calibrate-on",
    type=LOCATION,
    help="Scores of another split, to fit calibration and thresholds on.",
)
@click.option("--out", required=True, type=LOCATION, help="Folder for the report.")
@click.option(
    "--compare",
    "compare_with",
    type=LOCATION,
    help="Another model's scores of the same stamps.",
)
@click.option(
    "--catalog",
    type=LOCATION,
    help="Known lenses, a table in lenscat's columns: recall by grade.",
)
@columns_option("--catalog-column", "catalog_columns", of="the catalogue")
@click.option(
    "--catalog-scores",
    type=LOCATION,
    help="Scores to find the known lenses in; labels are not needed [default: SCORES].",
)
@click.option(
    "--dataset", type=LOCATION, help="Dataset to show stamps from, if not the one the scores name."
)
@click.option(
    "--selection-function",
    is_flag=True,
    help="Fit C(theta_E, seeing, arc S/N, magnitude) and write it for others to use.",
)
@click.option(
    "--population",
    type=LOCATION,
    help="Lenses with the same axes, and perhaps weight, to average that function over.",
)
@click.option(
    "--pool",
    is_flag=True,
    help="Headline figures of all rows together, real and simulated; else of one origin.",
)
@scores_options
@set_option("Override an option of the evaluation, such as resamples=2000.")
@s3_variables
@json_option
def evaluate(
    scores: str,
    out: str,
    catalog_columns: tuple[str, ...],
    columns: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
    pool: bool,
    **inputs: Any,
) -> None:
    """Measure how good SCORES are, with intervals by region, and write a report.

    SCORES is what `lenstrain infer` writes, or any table (parquet, CSV, FITS, VOTable, ...) with
    key, label, logit (or probability) and region_id.

    \b
    Example:
      lenstrain evaluate test.parquet --calibrate-on val.parquet --out report
    """
    from lensprep.tables.catalog import LENSCAT
    from lenstrain.cli.progress import share_progress
    from lenstrain.evaluation.options import EvaluationOptions
    from lenstrain.pages.evaluate import evaluate as run_evaluation

    named = catalog_columns_of(catalog_columns, inputs["catalog"], tuple(LENSCAT))
    if inputs["catalog"] is None and inputs["catalog_scores"] is not None:
        raise click.UsageError("--catalog-scores needs --catalog.")
    if inputs["population"] is not None and not inputs["selection_function"]:
        raise click.UsageError("--population needs --selection-function.")
    pooled = ("pool=true",) if pool else ()
    options = load_config(EvaluationOptions, None, (*overrides, *pooled))
    with share_progress() as progress:
        result = run_evaluation(
            scores,
            out,
            catalog_columns=named,
            columns=score_columns_of(columns),
            options=options,
            progress=progress,
            **inputs,
        )
    report(result, _evaluate_lines(result), as_json)


def _evaluate_lines(result: dict[str, Any]) -> list[str | TextTable]:
    from lenstrain.pages.headline import light_remarks, remarks, summary

    interval = f"{100 * result['level']:g}% interval"
    table = TextTable(
        "figure", "value", interval, "note",
        left=("value", interval), prose="note", spare=("note",),
    )  # fmt: skip
    for figure in summary(result):
        table.add(*figure)
    lines: list[str | TextTable] = [
        _of_whom(result),
        table,
        *remarks(result),
    ]
    if result["selection_function"] and result["selection_function"]["population"]:
        lines.append(_population_line(result["selection_function"]["population"]))
    return [*lines, *light_remarks(result), f"Report: {result['report']}"]


def _of_whom(result: dict[str, Any]) -> str:
    """Which rows the headline figures are of, and in how many regions."""
    origin = result.get("origin") if len(result.get("origins", ())) > 1 else ""
    kind = "; all origins pooled" if origin is None else f"; {origin} rows" if origin else ""
    counts = (
        count_text(result["n_positive"], "lens"),
        count_text(result["n_negative"], "non-lens"),
        count_text(result["n_regions"], "region"),
    )
    return f"{counts[0]}, {counts[1]} in {counts[2]}{kind}"


def _population_line(population: dict[str, Any]) -> str:
    from lenstrain.pages.page import interval, percent

    outside = f"{population['outside_share']:.1%} of it lies where no injections are"
    if population["value"] is None:
        return f"Completeness of the population unknown: {outside}"
    return f"Completeness of the population {interval(population, 1, percent)}; {outside}"
