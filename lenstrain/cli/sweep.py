"""`lenstrain sweep`: search hyper-parameters."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from lensprep.store.interrupts import PREEMPTED
from lensprep.terminal import LOCAL, LOCATION, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import (
    config_option,
    exit_if_interrupted,
    json_option,
    report,
    set_option,
)

_SHOWN = 5
"""Best trials that are printed."""


@click.command()
@click.argument("dataset", type=LOCATION)
@config_option("TOML file with the ranges, or a name of `lenstrain config list`.", required=True)
@click.option(
    "--study",
    required=True,
    type=LOCAL,
    help="SQLite database of the study, new or to be continued; results go to a folder next to it.",
)
@set_option("Override a key of the file, such as search.trials=20 or fixed.train.epochs=3.")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes on the study [default: one per GPU]."
)
@click.option("--worker", type=int, hidden=True)
@click.option(
    "--report",
    "only_report",
    is_flag=True,
    help="Train nothing: write the page of the study as it is, while others may work on it.",
)
@s3_variables
@json_option
def sweep(
    dataset: str,
    config_path: str,
    study: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    worker: int | None,
    only_report: bool,
    as_json: bool,
) -> None:
    """Search hyper-parameters on DATASET, refit the best, and recommend how to train.

    Trials are judged on the validation split; the test split is never opened. A trial that fails
    or runs out of memory is recorded and the study continues. Repeat the command to resume after an
    interruption, or to add trials with a larger search.trials. The folder next to the study has
    sweep.html; --report writes it while the study is under way.

    \b
    Example:
      lenstrain sweep data/ds --config sweep --study runs/sweep.db
    """
    from lenstrain.sweep.config import load_plan

    plan = load_plan(config_path, overrides)
    from lenstrain.sweep.study import make_study_files
    from lenstrain.sweep.sweep import report_study
    from lenstrain.sweep.sweep import sweep as run_sweep
    from lenstrain.sweep.work import work

    files = make_study_files(study)
    if worker is not None:
        done = work(dataset, plan, files, lambda line: click.echo(line, err=True), os.getppid())
        sys.exit(0 if done else PREEMPTED)
    sets = [part for override in overrides for part in ("--set", override)]
    arguments = ["sweep", dataset, "--config", config_path, "--study", str(study), *sets]
    if only_report:
        result = report_study(dataset, plan, files)
    else:
        result = run_sweep(dataset, plan, files, arguments, workers)
    report(result, _sweep_lines(result), as_json)
    exit_if_interrupted(result)


def _sweep_lines(result: dict[str, Any]) -> list[str | TextTable]:
    from lenstrain.sweep.report import setting

    if result["status"] == "interrupted":
        return ["Interrupted; repeat the same command to continue."]
    lines: list[str | TextTable] = [f"Note: {note}" for note in result["notes"]]
    lines.append(
        ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    )
    if result["best_trials"]:
        table = TextTable("trial", result["objective"], "settings", prose="settings")
        for trial in result["best_trials"][:_SHOWN]:
            settings = (f"{key} {setting(value)}" for key, value in trial["params"].items())
            table.add(str(trial["trial"]), f"{trial['value']:.4f}", ", ".join(settings))
        lines.append(table)
    for entry in result["refits"]:
        values = ", ".join(f"{value:.4f}" for value in entry["values"])
        lines.append(f"trial {entry['trial']}: {entry['value']:.4f} in the search; refits {values}")
    lines.append(f"Report: {result['report']}")
    found = result["recommended"]
    if found is not None:
        return [*lines, "Recommended:", found["command"]]
    if result["progress"]["finished"]:
        return [*lines, "No trial succeeded: nothing to recommend. See the failures in the report."]
    far = result["progress"]
    return [
        *lines,
        f"{far['trials_ended']} of {far['trials']} trials have ended: nothing is recommended yet.",
    ]
