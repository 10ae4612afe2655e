"""`lenstrain cache`: copies of object-store shards on a fast local disk."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from lensprep.errors import count_text, size_text
from lensprep.terminal import LOCAL, LOCATION, CommandGroup, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import json_option, limit_option, report

dir_option = click.option(
    "--dir",
    "folder",
    required=True,
    type=LOCAL,
    envvar="LENSTRAIN_CACHE_DIR",
    help="The cache's folder; or the variable LENSTRAIN_CACHE_DIR.",
)


@click.group(cls=CommandGroup)
def cache() -> None:
    """Look after copies of object-store shards on a fast local disk.

    `lenstrain train` keeps them where data.cache_dir says, for all processes of a node and all
    later runs.

    \b
    Example:
      lenstrain cache fill s3://lenses/v1 --dir /nvme/cache
      lenstrain train s3://lenses/v1 --out runs/a --set data.cache_dir=/nvme/cache
    """


@cache.command()
@dir_option
@json_option
def status(folder: Path, as_json: bool) -> None:
    """Show what is in the cache, what is in use, and what is free.

    \b
    Example:
      lenstrain cache status --dir /nvme/cache
    """
    from lenstrain.data.cache.folder import CacheFolder
    from lenstrain.data.cache.upkeep import status as look

    result = look(CacheFolder.open(folder, create=False))
    report(result, _status_lines(result), as_json)


def _status_lines(result: dict[str, Any]) -> list[str | TextTable]:
    table = TextTable(
        "dataset", "shards", "size", "coming", "in use", "last used", "from",
        left=("in use", "last used"), prose="from", spare=("coming", "last used"),
    )  # fmt: skip
    for one in result["datasets"]:
        table.add(
            one["dataset_id"][:12],
            f"{one['shards']} of {'?' if one['of'] is None else one['of']}",
            size_text(one["bytes"]),
            str(one["coming"]),
            "yes" if one["in_use"] else "no",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one["last_used"])),
            one["uri"],
        )
    total = (
        f"{result['dir']}: {size_text(result['bytes'])} of shards, "
        f"{size_text(result['free_bytes'])} of the disk free"
    )
    return [table, total] if result["datasets"] else [total]


@cache.command()
@click.argument("dataset", type=LOCATION)
@dir_option
@click.option("--split", "splits", multiple=True, help="Only this split. Repeatable.")
@limit_option("--limit-gb")
@click.option(
    "--reserve-gb",
    default=20.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="What stays free on the disk.",
)
@s3_variables
@json_option
def fill(
    dataset: str,
    folder: Path,
    splits: tuple[str, ...],
    limit_gb: float,
    reserve_gb: float,
    as_json: bool,
) -> None:
    """Fetch DATASET into the cache before it is needed.

    Shards already in the cache are not fetched again, and several processes share the work.
    Datasets that no process uses are evicted to make room, those unused for longest first.

    \b
    Example:
      lenstrain cache fill s3://lenses/v1 --split train --split val --dir /nvme/cache
    """
    from lenstrain.cli.progress import bytes_progress
    from lenstrain.data.cache.folder import CacheFolder, CacheOptions
    from lenstrain.data.cache.upkeep import fill as run_fill

    options = CacheOptions(limit_bytes=int(limit_gb * 1e9), reserve_bytes=int(reserve_gb * 1e9))
    with bytes_progress("filling") as progress:
        result = run_fill(CacheFolder.open(folder, options), dataset, splits, progress=progress)
    lines = [
        f"{result['shards'] - result['missing']:,} of {count_text(result['shards'], 'shard')} "
        f"({size_text(result['bytes'])}) are in {folder}; {result['fetched']} were fetched now, "
        f"{size_text(result['fetched_bytes'])} at {result['mb_per_s']:,.0f} MB/s"
    ]
    if result["missing"]:
        lines.append(
            f"There was no room for {count_text(result['missing'], 'shard')}: streamed "
            "instead. Raise --limit-gb, lower --reserve-gb, or clear other datasets."
        )
    report(result, lines, as_json)


@cache.command()
@dir_option
@click.option("--keep", is_flag=True, help="Leave damaged shards where they are.")
@json_option
def verify(folder: Path, keep: bool, as_json: bool) -> None:
    """Hash every shard in the cache again; damaged ones are removed and fetched when needed.

    Exit status 1 if one is damaged.

    \b
    Example:
      lenstrain cache verify --dir /nvme/cache
    """
    from lenstrain.cli.progress import bytes_progress
    from lenstrain.data.cache.folder import CacheFolder
    from lenstrain.data.cache.upkeep import verify as run_verify

    with bytes_progress("hashing") as progress:
        result = run_verify(CacheFolder.open(folder, create=False), keep=keep, progress=progress)
    done = "" if keep else "; removed"
    lines = [f"{one['file']} ({one['name']}): {one['fault']}{done}" for one in result["damaged"]]
    count = len(result["damaged"])
    lines.append(
        f"{count_text(result['shards'], 'shard')} ({size_text(result['bytes'])}): "
        + (f"{count} damaged" if count else "all as they were written")
    )
    report(result, lines, as_json)
    sys.exit(0 if result["ok"] else 1)


@cache.command()
@dir_option
@click.option(
    "--dataset", "dataset_ids", multiple=True, metavar="ID", help="Only this one. Repeatable."
)
@json_option
def clear(folder: Path, dataset_ids: tuple[str, ...], as_json: bool) -> None:
    """Remove datasets from the cache, all if none is named.

    Those that a running process uses are kept.

    \b
    Example:
      lenstrain cache clear --dir /nvme/cache --dataset 0f3a5c
    """
    from lenstrain.data.cache.folder import CacheFolder
    from lenstrain.data.cache.upkeep import clear as run_clear

    result = run_clear(CacheFolder.open(folder, create=False), dataset_ids)
    lines = [f"{size_text(result['removed_bytes'])} removed from {folder}"]
    lines += [
        f"{one[:12]} is kept: a running process uses it. Try again when it has ended."
        for one in result["kept"]
    ]
    report(result, lines, as_json)
