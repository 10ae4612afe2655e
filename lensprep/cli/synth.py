"""`lensprep synth`: make a synthetic Phase 4c tree."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from lensprep.cli.options import json_option, workers_option
from lensprep.errors import count_text, size_text
from lensprep.terminal import (
    LOCATION,
    fractions_option,
    print_json,
    print_rich,
    progress_bar,
    s3_options,
)
from lensprep.texttable import TextTable


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
@fractions_option("Shares of the splits [default: train=0.6,val=0.15,test=0.25].")
@fractions_option("The same.", name="--split-fractions", hidden=True)  # its name before
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
    fractions: dict[str, float] | None,
    split_fractions: dict[str, float] | None,
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
            split_fractions=fractions or split_fractions,
            defects=planted or None,
            progress=partial(show, "stamps"),
            **named,
        )
    if as_json:
        print_json(result)
        return
    size = size_text(result["bytes"])
    files = count_text(result["files"], "file")
    click.echo(f"{count_text(result['rows'], 'stamp')} in {out}: {files}, {size}")
    table = TextTable("split", "stamps", "lenses", "regions")
    for name, split in result["splits"].items():
        table.add(name, *(f"{split[key]:,}" for key in ("rows", "injections", "regions")))
    print_rich(table)
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
