"""`lensprep check`: whether the source is what you think it is."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from lensprep.cli.options import json_option, survey_option, workers_option
from lensprep.store import S3Options, check_file
from lensprep.terminal import (
    LOCATION,
    Location,
    fractions_option,
    print_json,
    print_rich,
    progress_bar,
    s3_options,
)


@click.command()
@click.argument("src", type=LOCATION, nargs=-1)
@click.option("--pixels", is_flag=True, help="Decode the stamps too: duplicate images, bad blobs.")
@fractions_option("What the splits should be.")
@click.option(
    "--rejects",
    type=Location(".csv", ".parquet"),
    metavar="FILE",
    help="List every row that conversion would leave out, with its reason: .csv or .parquet.",
)
@click.option("--columns", is_flag=True, help="Say what SRC's columns should be, and read none.")
@survey_option
@s3_options
@workers_option
@json_option
def check(
    src: tuple[str, ...],
    fractions: dict[str, float] | None,
    rejects: str | None,
    columns: bool,
    survey: str,
    as_json: bool,
    options: S3Options,
    **named: Any,
) -> None:
    """Check that SRC is the data that you think it is. Stamps are read only if you ask for it.

    The verdict is "ok" or "warnings" (exit status 0), or "failed" (1).

    \b
    Example:
      lensprep check s3a-copy/stamps --json > check.json
      lensprep check s3a-copy/stamps --rejects rejects.csv
      lensprep check demo/phase4c demo/counterfactuals
      lensprep check hsc/stamps --survey hsc
      lensprep check --columns
    """
    if columns == bool(src):
        raise click.UsageError("Name SRC, or ask for the table of its columns with --columns.")
    from lensprep.checks.check import check as run_check
    from lensprep.checks.check import render_text
    from lensprep.checks.columns import column_records, render_columns
    from lensprep.source.survey import load_survey

    if columns:
        known = load_survey(survey, options)
        if as_json:
            print_json({"survey": known.name, "columns": column_records(known)})
        else:
            print_rich(render_columns(known))
        return
    if rejects is not None:
        check_file(rejects, options)
    with progress_bar() as show:
        report = run_check(
            src,
            rejects=rejects,
            declared_fractions=fractions,
            progress=partial(show, "rows"),
            options=options,
            survey=load_survey(survey, options),
            **named,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_rich(render_text(report))
    sys.exit(report.exit_code)
