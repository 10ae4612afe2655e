"""`lensprep doctor`: whether this machine can convert, and how long that takes."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lensprep.cli.options import json_option, survey_option
from lensprep.store import S3Options
from lensprep.terminal import (
    LOCATION,
    disk_option,
    doing_on_stderr,
    print_json,
    print_rich,
    s3_options,
    store_option,
)


@click.command()
@click.argument("src", type=LOCATION, required=False)
@disk_option
@store_option
@survey_option
@s3_options
@json_option
def doctor(
    src: str | None,
    disks: tuple[Path, ...],
    store: str | None,
    survey: str,
    as_json: bool,
    options: S3Options,
) -> None:
    """Check this machine before the work: versions, processors, memory, disks, a store.

    With SRC, a tree or a dataset, also its size, how long its conversion will take, and what will
    be the bottleneck. Nothing is written into SRC. The exit status is 1 if something was found
    that makes the work impossible.

    \b
    Example:
      lensprep doctor /data/phase4c --disk /nvme
      lensprep doctor --store s3://bucket/lenses
      lensprep doctor s3://bucket/phase4c --json > doctor.json
    """
    from lensprep.doctor import doctor_facts, run_doctor
    from lensprep.machine import doctor_page
    from lensprep.source.survey import load_survey

    with doing_on_stderr() as tell:
        report = run_doctor(
            src,
            disks=disks,
            store=store,
            survey=load_survey(survey, options),
            options=options,
            tell=tell,
        )
    if as_json:
        print_json(report)
    else:
        print_rich(doctor_page(doctor_facts(report), report["findings"]))
    sys.exit(not report["ok"])
