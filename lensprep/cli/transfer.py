"""`lensprep upload` and `download`: copy a dataset to an object store, and from one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lensprep.cli.options import json_option
from lensprep.errors import count_text, size_text
from lensprep.store import S3Options
from lensprep.store.interrupts import INTERRUPTED
from lensprep.terminal import LOCAL, LOCATION, print_json, progress_bar, s3_options, write_options


@click.command()
@click.argument("dataset", type=LOCAL)
@click.argument("destination", type=LOCATION, metavar="s3://BUCKET/FOLDER")
@write_options
@s3_options
@json_option
def upload(dataset: Path, destination: str, as_json: bool, options: S3Options) -> None:
    """Copy a finished dataset to an object store; run it again to resume after an interruption.

    Objects that are already there with the same digest are skipped, and none is replaced. The
    manifest is sent last, so that nobody sees an unfinished dataset.

    \b
    Example:
      lensprep upload /nvme/lenses s3://bucket/lenses
    """
    from lensprep.transfer import upload as run_upload

    _transfer(run_upload, str(dataset), destination, options, as_json)


@click.command()
@click.argument("uri", type=LOCATION, metavar="s3://BUCKET/FOLDER")
@click.argument("dataset", type=LOCAL)
@s3_options
@json_option
def download(uri: str, dataset: Path, as_json: bool, options: S3Options) -> None:
    """Copy a dataset from an object store; run it again to resume after an interruption.

    Every file is checked against its digest before it gets its name; existing files are skipped.

    \b
    Example:
      lensprep download s3://bucket/lenses /nvme/lenses
    """
    from lensprep.transfer import download as run_download

    _transfer(run_download, uri, str(dataset), options, as_json)


def _transfer(
    move: Callable[..., dict[str, Any]],
    source: str,
    destination: str,
    options: S3Options,
    as_json: bool,
) -> None:
    try:
        with progress_bar() as show:
            result = move(source, destination, options, progress=show)
    except KeyboardInterrupt:
        click.echo("Stopped. Finished work is kept: run the same command again.", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{result['destination']}: {count_text(result['sent_files'], 'file')}, "
        f"{size_text(result['sent_bytes'])} in {result['seconds']:.1f} s "
        f"({size_text(result['bytes_per_s'])}/s); "
        f"{result['skipped_files']:,} already there; dataset {result['dataset_id'][:12]}"
    )
