"""`lensprep inspect`: show what is in a dataset."""

from __future__ import annotations

import click

from lensprep.cli.options import json_option
from lensprep.errors import count_text
from lensprep.store import S3Options, check_file
from lensprep.terminal import LOCATION, PICTURE, print_json, print_rich, s3_options


@click.command()
@click.argument("location", type=LOCATION, metavar="DATASET|SHARD")
@click.option("--split", help="Only this split.")
@click.option("--sample", type=click.IntRange(0), help="Show this record in full, by position.")
@click.option(
    "--montage",
    type=PICTURE,
    help="Draw a sample of stamps into this picture: .png, .jpg or .pdf.",
)
@click.option(
    "--count", type=click.IntRange(1), default=48, show_default=True, help="Stamps in it."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the montage's draw.",
)
@s3_options
@json_option
def inspect(
    location: str,
    split: str | None,
    sample: int | None,
    montage: str | None,
    count: int,
    seed: int,
    as_json: bool,
    options: S3Options,
) -> None:
    """Show what is in a dataset, in one of its shards, or in a separate tar.

    \b
    Example:
      lensprep inspect demo/dataset --split test --sample 17 --montage stamps.png
    """
    from lensprep.inspection.inspect import inspect_dataset
    from lensprep.inspection.montage import write_montage
    from lensprep.inspection.text import render_text

    if montage is not None:
        check_file(montage, options)
    inspection = inspect_dataset(location, split=split, sample=sample, options=options)
    keys = []
    if montage is not None:
        keys = write_montage(
            location, montage, split=split, count=count, seed=seed, options=options
        )
    if as_json:
        print_json({**inspection.to_dict(), "montage": montage})
        return
    print_rich(render_text(inspection))
    if montage is not None:
        click.echo(f"{montage}: {count_text(len(keys), 'stamp')}")
