"""`lenstrain sweep` and `generalize`: many runs, and what they say together."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.store import join_uri
from lensprep.store.interrupts import PREEMPTED
from lensprep.terminal import LOCAL, LOCATION, s3_variables
from lenstrain.cli.options import (
    config_option,
    exit_if_interrupted,
    json_option,
    report,
    set_option,
)


@click.command()
@click.argument("dataset", type=LOCATION)
@config_option("TOML file with the ranges; see configs/sweep.toml.", required=True)
@click.option(
    "--study",
    required=True,
    type=LOCAL,
    help="SQLite database of the study, new or to go on with; results lie in a folder beside it.",
)
@set_option("Override a key of the file, such as search.trials=20 or fixed.train.epochs=3.")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes on the study [default: one per GPU]."
)
@click.option("--worker", type=int, hidden=True)
@s3_variables
@json_option
def sweep(
    dataset: str,
    config_path: str,
    study: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    worker: int | None,
    as_json: bool,
) -> None:
    """Search hyper-parameters on DATASET, refit the best, and recommend how to train.

    Trials are judged on the validation split; the test split is never opened. A trial that fails
    or runs out of memory is recorded and the study goes on. Repeat the command to go on after an
    interruption, or to add trials with a larger search.trials.

    \b
    Example:
      lenstrain sweep data/ds --config configs/sweep.toml --study runs/sweep.db
    """
    from lenstrain.sweep.config import load_plan

    plan = load_plan(config_path, overrides)
    from lenstrain.sweep.sweep import study_database, worker_count
    from lenstrain.sweep.sweep import sweep as run_sweep
    from lenstrain.sweep.work import work

    places = study_database(study)
    if worker is not None:
        done = work(dataset, plan, places, lambda line: click.echo(line, err=True), os.getppid())
        sys.exit(0 if done else PREEMPTED)
    sets = [part for override in overrides for part in ("--set", override)]
    arguments = ["sweep", dataset, "--config", config_path, "--study", str(study), *sets]
    result = run_sweep(dataset, plan, places, arguments, worker_count(workers))
    report(result, _sweep_lines(result), as_json)
    exit_if_interrupted(result)


def _sweep_lines(result: dict[str, Any]) -> list[str]:
    if result["status"] == "interrupted":
        return ["Interrupted; the same command goes on."]
    lines = [f"Note: {note}" for note in result["notes"]]
    lines.append(
        ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    )
    for entry in result["refits"]:
        values = ", ".join(f"{value:.4f}" for value in entry["values"])
        lines.append(f"trial {entry['trial']}: {entry['value']:.4f} in the search; refits {values}")
    found = result["recommended"]
    if found is None:
        return [*lines, "No trial succeeded: nothing to recommend. See the failures in sweep.json."]
    return [*lines, f"Figures: {', '.join(result['plots'])}", "Recommended:", found["command"]]


@click.command()
@click.argument("dataset", type=LOCATION)
@config_option()
@click.option("--out", required=True, type=LOCATION, help="Folder for runs and result.")
@click.option(
    "--hold-out",
    "factors",
    multiple=True,
    metavar="COLUMN",
    help="Leave out one value of this column after the other. Repeatable  [default: "
    "theta_e_arcsec, src_dmag, lens_model].",
)
@click.option("--split", default="test", show_default=True, help="Split to compare on.")
@click.option(
    "--fpr",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="False-positive rate at which completeness is compared.",
)
@set_option("Override a key of the training configuration.")
@s3_variables
@json_option
def generalize(
    dataset: str,
    config_path: str | None,
    out: str,
    factors: tuple[str, ...],
    split: str,
    fpr: float,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train without one kind of lens after the other, and compare on the ones left out.

    One run with all lenses, and one for each value of each column. Finished runs are kept: the
    same command goes on after an interruption. What has one value only is "not testable".

    \b
    Example:
      lenstrain generalize data/ds --config configs/resnet18.toml --out runs/generalize
    """
    from lenstrain.cli.progress import share_progress
    from lenstrain.config import Config
    from lenstrain.generalize import FACTORS, TABLE_NAME, as_markdown, check_factors
    from lenstrain.generalize import generalize as run_generalization

    config = load_config(Config, config_path, overrides)
    check_factors(factors)
    with share_progress() as progress:
        result = run_generalization(
            dataset,
            config,
            out,
            factors=factors or FACTORS,
            split=split,
            fpr=fpr,
            progress=progress,
        )
    table = as_markdown(result).splitlines()[2:]
    report(result, [*table, "", f"Written to {join_uri(out, TABLE_NAME)}"], as_json)
