"""`lenstrain mine`: the controls that look most like lenses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lensprep.configfile import load_config
from lensprep.errors import count_text
from lensprep.terminal import LOCATION, s3_variables
from lenstrain.cli.options import (
    OUT_HELP,
    TABLE,
    catalog_columns_of,
    columns_option,
    json_option,
    report,
    score_columns_of,
    scores_options,
    set_option,
)

if TYPE_CHECKING:
    from lenstrain.scoretable import ScoresAre


@click.command()
@click.argument("scores", nargs=-1, required=True, type=LOCATION)
@click.option("--out", required=True, type=TABLE, help=OUT_HELP)
@click.option(
    "--catalog",
    type=LOCATION,
    help="Known lenses, a table with ra, dec: controls near one are left out.",
)
@columns_option("--catalog-column", "catalog_columns", of="the catalogue")
@scores_options
@set_option("Override an option: fraction=0.05, factor=4.0, psf_bins=4, radius_arcsec=5.0.")
@s3_variables
@json_option
def mine(
    scores: tuple[str, ...],
    out: str,
    catalog: str | None,
    catalog_columns: tuple[str, ...],
    columns: tuple[str, ...],
    scores_are: ScoresAre | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the controls of SCORES that look most like lenses, in each bin of seeing.

    SCORES are tables of `lenstrain infer --split train`; of several tables the mean logit counts.
    To train with the list, use --set data.sample_weights=FILE.

    \b
    Example:
      lenstrain mine train.parquet --catalog known.csv --out hard.parquet
    """
    from lenstrain.scoring.mine import MiningOptions
    from lenstrain.scoring.mine import mine as run_mining

    options = load_config(MiningOptions, None, overrides)
    result = run_mining(
        scores,
        out,
        catalog=catalog,
        catalog_columns=catalog_columns_of(catalog_columns, catalog, ("ra", "dec")),
        columns=score_columns_of(columns),
        scores_are=scores_are,
        options=options,
    )
    lines = [f"Note: {note}" for note in result["notes"]]
    if made := result["counterfactuals"]:
        lines.append(f"Note: {count_text(made, 'counterfactual')} left out: no controls.")
    lines.append(
        f"{result['hard']:,} hard of {result['controls']:,} controls in "
        f"{count_text(len(result['bins']), 'bin')} of seeing, {result['excluded']:,} left "
        f"out near known lenses: {out}"
    )
    report(result, [*lines, f"Train with --set data.sample_weights={out}"], as_json)
