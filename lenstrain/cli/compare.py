"""`lenstrain compare`: several runs side by side."""

from __future__ import annotations

from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.terminal import LOCATION, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import json_option, report, set_option


@click.command()
@click.argument("places", metavar="RUN_OR_REPORT...", nargs=-1, required=True, type=LOCATION)
@click.option("--out", required=True, type=LOCATION, help="Folder for the comparison.")
@set_option("Override an option of the evaluation, such as resamples=2000.")
@s3_variables
@json_option
def compare(places: tuple[str, ...], out: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compare runs: settings that differ, learning curves, figures on the same draws.

    RUN_OR_REPORT is a run folder, whose report lies in it or next to it, or the folder of a report;
    the others are compared with the first. Differences need scores of the same stamps.

    \b
    Example:
      lenstrain compare runs/a runs/b --out comparison
    """
    if len(places) < 2:
        raise click.UsageError("Name two runs or more.")
    from lenstrain.comparison.compare import compare_runs
    from lenstrain.evaluation.options import EvaluationOptions

    options = load_config(EvaluationOptions, None, overrides)
    result = compare_runs(places, out, options=options)
    report(result, _lines(result), as_json)


def _lines(result: dict[str, Any]) -> list[str | TextTable]:
    from lenstrain.comparison.report import rows_of, unsupported

    lines: list[str | TextTable] = [
        f"{name} is not compared: {found['reason']}"
        for name, found in result["differences"].items()
        if "reason" in found
    ]
    if rows := rows_of(result):
        table = TextTable(
            "figure", "run", "value", "of first", "difference", "verdict",
            left=("run", "difference", "verdict"), spare=("of first",),
        )  # fmt: skip
        for row in rows:
            table.add(*row)
        first = result["runs"][0]["name"]
        level = f"{100 * result['level']:g}%"
        lines += [
            f"Differences are from the first, {first}, with {level} intervals on the same draws of "
            "regions. Completeness is at the rate on these very non-lenses, its differences in "
            "percentage points.",
            table,
        ]
    return [*lines, *unsupported(result), f"Report: {result['report']}"]
