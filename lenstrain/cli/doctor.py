"""`lenstrain doctor`: whether this machine can train, and how long an epoch takes."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lensprep.configfile import load_config
from lensprep.terminal import (
    LOCATION,
    disk_option,
    doing_on_stderr,
    print_json,
    print_rich,
    s3_variables,
    store_option,
)
from lenstrain.cli.options import config_option, json_option, set_option


@click.command()
@click.argument("dataset", type=LOCATION, required=False)
@config_option()
@set_option("Override a key of the configuration, such as data.batch_size=512.")
@disk_option
@store_option
@s3_variables
@json_option
def doctor(
    dataset: str | None,
    config_path: str | None,
    overrides: tuple[str, ...],
    disks: tuple[Path, ...],
    store: str | None,
    as_json: bool,
) -> None:
    """Check this machine before a training: versions, GPUs, memory, disks, a store, the pace.

    A few steps of the configuration are timed, with DATASET also its loader and its disk or
    network, which gives the time of an epoch and what will be the bottleneck. Nothing is written
    into DATASET. The exit status is 1 if something was found that makes the training impossible.

    \b
    Example:
      lenstrain doctor data/ds --config resnet18
      lenstrain doctor s3://lenses/v1 --store s3://lenses/runs --json > doctor.json
    """
    from lensprep.machine import doctor_page
    from lenstrain.config import Config
    from lenstrain.doctor import doctor_facts, run_doctor

    config = load_config(Config, config_path, overrides)
    with doing_on_stderr() as tell:
        report = run_doctor(dataset, config, disks=disks, store=store, tell=tell)
    if as_json:
        print_json(report)
    else:
        print_rich(doctor_page(doctor_facts(report), report["findings"]))
    sys.exit(not report["ok"])
