"""`lensprep synth`: make a synthetic Phase 4c tree."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from lensprep.cli.options import json_option, workers_option
from lensprep.dataset.layout import SPLITS
from lensprep.errors import size_text
from lensprep.terminal import LOCATION, print_json, progress_bar, s3_options


@click.command()
@click.argument("out", type=LOCATION)
@click.option("--rows", type=click.IntRange(1), required=True, help="Stamps to make.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the sky and everything in it.",
)
@click.option(
    "--priors",
    metavar="NAME",
    default="upstream",
    show_default=True,
    help="What hosts, lenses and arcs are drawn from: upstream, as Phase 4c; or realistic.",
)
@click.option("--regions", type=click.IntRange(3), help="Regions of sky [default: by rows].")
@click.option("--split-fractions", metavar="T/V/T", help="Train/val/test [default: 60/15/25].")
@click.option("--defects", is_flag=True, help="Plant the known defects, and write their truth.")
@click.option(
    "--defect",
    "rates",
    multiple=True,
    metavar="NAME=RATE",
    help="Plant this defect at this rate instead; repeatable.",
)
@s3_options
@workers_option
@json_option
def synth(
    out: str,
    rows: int,
    split_fractions: str | None,
    defects: bool,
    rates: tuple[str, ...],
    as_json: bool,
    **named: Any,
) -> None:
    """Make a synthetic Phase 4c tree in OUT: galaxies, lenses, seeing and noise like DECaLS.

    With --defects, OUT/_truth.parquet says what conversion must make of every planted row.

    \b
    Example:
      lensprep synth demo/phase4c --rows 2000 --seed 1
    """
    from lensprep.synth import DEFAULT_RATES, synthesize

    planted = dict(DEFAULT_RATES) if defects else {}
    planted |= dict(map(_rate, rates))
    with progress_bar() as show:
        result = synthesize(
            out,
            rows=rows,
            split_fractions=_fractions(split_fractions),
            defects=planted or None,
            progress=partial(show, "stamps"),
            **named,
        )
    if as_json:
        print_json(result)
        return
    size = size_text(result["bytes"])
    click.echo(f"{result['rows']:,} stamps in {out}: {result['files']} files, {size}")
    for name, split in result["splits"].items():
        click.echo(
            f"  {name:<6}{split['rows']:>8,} stamps  {split['injections']:>8,} lenses  "
            f"{split['regions']:>4} regions"
        )
    if planted:
        click.echo(f"{result['truth']}: what was planted, and what conversion must make of it")


def _rate(text: str) -> tuple[str, float]:
    """Name and rate of a defect from the command line."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        what = f"write it as NAME=RATE, got {text!r}"
        raise click.BadParameter(what, param_hint="--defect") from None


def _fractions(text: str | None) -> dict[str, float] | None:
    """Split fractions from text such as 60/15/25."""
    if text is None:
        return None
    try:
        return dict(zip(SPLITS, map(float, text.split("/")), strict=True))
    except ValueError:
        what = f"write them as 60/15/25, got {text!r}"
        raise click.BadParameter(what, param_hint="--split-fractions") from None
