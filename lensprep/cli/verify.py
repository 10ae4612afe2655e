"""`lensprep verify`: read every byte of a dataset."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from lensprep.cli.options import cutouts_option, json_option, workers_option
from lensprep.errors import count_text, plain_text
from lensprep.terminal import LOCATION, print_json, progress_bar, s3_options


@click.command()
@click.argument("dataset", type=LOCATION)
@click.option(
    "--against",
    type=LOCATION,
    multiple=True,
    metavar="SRC",
    help="Convert rows of this source again and compare them; repeatable, as it may have several "
    "trees and catalogues of cutouts.",
)
@cutouts_option
@click.option("--sample", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--all", "every", is_flag=True, help="Compare every row with the source.")
@s3_options
@workers_option
@json_option
def verify(
    dataset: str, against: tuple[str, ...], sample: int, every: bool, as_json: bool, **named: Any
) -> None:
    """Read every byte of DATASET and compare it with the manifest. Exit status 1 on any fault.

    \b
    Example:
      lensprep verify demo/dataset --against demo/phase4c
      lensprep verify lenses --against demo/phase4c --against lenses.csv --cutouts cutouts
    """
    from lensprep.inspection.verify import verify as run_verify

    with progress_bar() as show:
        result = run_verify(
            dataset,
            against=against or None,
            sample=None if every else sample,
            progress=partial(show, "stamps"),
            **named,
        )
    if as_json:
        print_json(result)
    else:
        for fault in result["faults"]:
            row = "" if fault["row"] is None else f", row {fault['row']}"
            offset = "" if fault["offset"] is None else f", offset {fault['offset']}"
            click.echo(plain_text(f"{fault['file']}{row}{offset}: {fault['what']}"))
        compared = f", {result['compared']:,} compared with the source" if against else ""
        state = "ok" if result["ok"] else count_text(len(result["faults"]), "fault")
        shards, stamps = count_text(result["shards"], "shard"), count_text(result["rows"], "stamp")
        click.echo(f"{shards}, {stamps}{compared}: {state}")
    sys.exit(0 if result["ok"] else 1)
