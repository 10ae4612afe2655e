"""`lenstrain audit`: is a run fit to be published."""

from __future__ import annotations

import sys
from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.terminal import LOCATION, fractions_option, s3_variables
from lenstrain.cli.options import config_option, json_option, report, set_option


@click.command()
@click.argument("run", type=LOCATION)
@click.argument("dataset", type=LOCATION)
@click.option(
    "--out",
    type=LOCATION,
    help="Folder for the results  [default: audit in the run folder].",
)
@click.option("--scores", type=LOCATION, help="Scores of the test split.")
@click.option("--evaluation", type=LOCATION, help="Folder of `lenstrain evaluate`.")
@click.option(
    "--calibration-scores",
    type=LOCATION,
    help="Scores that were given to `lenstrain evaluate --calibrate-on`, if moved since.",
)
@click.option(
    "--probe",
    "probe_path",
    type=LOCATION,
    help="Folder of `lenstrain probe`.",
)
@click.option(
    "--seed-scores",
    multiple=True,
    type=LOCATION,
    help="Scores of the same split by a run with another seed. Repeatable.",
)
@click.option(
    "--left-out",
    multiple=True,
    metavar="COLUMN=VALUE:SCORES",
    help="Scores by a run that was trained without a value. Repeatable.",
)
@click.option(
    "--real",
    type=LOCATION,
    help="Scores of real lenses  [default: the dataset's own real rows].",
)
@click.option(
    "--confusers",
    type=LOCATION,
    help="Scores of confusers, blank fields and artefacts, with a column `kind`  [default: the "
    "dataset's own real rows].",
)
@click.option("--run-checks", is_flag=True, help="Also run the short trainings (minutes).")
@click.option("--only", multiple=True, metavar="ITEM", help="Measure this item only. Repeatable.")
@fractions_option("Shares of the rows that you believe to be in each split.")
@config_option("TOML file of thresholds.")
@set_option("Override a threshold, such as scores.claimed_fprs=[0.01].")
@s3_variables
@json_option
def audit(
    run: str,
    dataset: str,
    out: str | None,
    probe_path: str | None,
    run_checks: bool,
    only: tuple[str, ...],
    fractions: dict[str, float] | None,
    config_path: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **named: Any,
) -> None:
    """Check whether RUN, trained on DATASET, is fit to be published: the readiness checklist.

    Scores, evaluation and probes of the run's best checkpoint are found in the run folder and,
    on a disk, next to it. Exit status: 0 GO, 3 CONDITIONAL, 4 NO-GO.

    \b
    Example:
      lenstrain audit runs/a data/ds --run-checks
    """
    from lenstrain.audit.config import AuditConfig

    declared = [f"data.{split}_fraction={share}" for split, share in (fractions or {}).items()]
    config = load_config(AuditConfig, config_path, (*declared, *overrides))
    from lenstrain.audit.audit import audit as run_audit
    from lenstrain.audit.evidence import Supplied
    from lenstrain.audit.report import lines
    from lenstrain.cli.progress import share_progress

    supplied = Supplied(probe=probe_path, **named)
    with share_progress() as progress:
        content, findings = run_audit(
            run,
            dataset,
            out,
            supplied=supplied,
            config=config,
            run_checks=run_checks,
            only=only,
            progress=progress,
        )
    report(content, [*lines(content, findings), f"Report: {content['report']}"], as_json)
    sys.exit(content["exit_code"])
