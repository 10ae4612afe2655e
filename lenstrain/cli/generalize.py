"""`lenstrain generalize`: train without one kind of lens after the other."""

from __future__ import annotations

import click

from lensprep.configfile import load_config
from lensprep.store import join_uri
from lensprep.terminal import LOCATION, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import config_option, json_option, report, set_option


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

    One run with all lenses, and one for each value of each column. Runs alone or under torchrun.
    Finished runs are kept: repeat the command to continue after an interruption. A column of one
    value only is "not testable".

    \b
    Example:
      lenstrain generalize data/ds --config resnet18 --out runs/generalize
    """
    from lenstrain.cli.progress import share_progress
    from lenstrain.config import Config
    from lenstrain.generalize import (
        COLUMNS,
        FACTORS,
        TABLE_NAME,
        check_factors,
        table_rows,
        too_few,
        words,
    )
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
    table = TextTable(*COLUMNS, left=("difference",), prose="verdict", spare=("others", "lenses"))
    for row in table_rows(result):
        table.add(*row)
    written = f"Written to {join_uri(out, TABLE_NAME)}"
    report(result, [words(result), table, *too_few(result), written], as_json)
