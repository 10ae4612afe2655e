"""What the commands of the trainer share: options, and how they report their results."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.console import RenderableType

from lensprep.errors import without_control
from lensprep.store.interrupts import INTERRUPTED, PREEMPTED
from lensprep.tables.writer import TABLE_SUFFIXES
from lensprep.terminal import LOCAL, Location, NamedFile, print_rich

F = TypeVar("F", bound=Callable[..., Any])

POSITIVE = click.FloatRange(min=0, min_open=True)

TABLE = Location(*TABLE_SUFFIXES)
"""Type of an option that names a table to be written."""
OUT_HELP = "Table to write: .parquet, .csv, .csv.gz, .fits or .vot."

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)
device_option = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
memory_option = click.option(
    "--memory-budget",
    "memory_budget_gb",
    default=1.0,
    show_default=True,
    type=POSITIVE,
    help="Memory in GB for reading ahead, in each process.",
)


CONFIG = NamedFile("lenstrain", "configs")
"""Type of a parameter that takes a configuration: a file, or a name of `lenstrain config list`."""


def config_option(
    help: str = "TOML file, or a name of `lenstrain config list`; demo suits a laptop  "
    "[default: as resnet18].",
    *,
    required: bool = False,
) -> Any:
    """Add ``--config``, as ``config_path``."""
    return click.option(
        "--config", "config_path", type=CONFIG, metavar="NAME|FILE", required=required, help=help
    )


def set_option(help: str) -> Any:
    """Add ``--set``, as ``overrides``: what `lensprep.configfile.load_config` takes."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"{help} Repeatable."
    )


def limit_option(name: str) -> Callable[[F], F]:
    """Add the limit of a cache."""
    return click.option(
        name,
        default=900.0,
        show_default=True,
        type=click.FloatRange(min=0),
        help="Most that the cache may hold, of all datasets.",
    )


def reading_options(command: F) -> F:
    """Add the options of reading from an object store, for commands without a configuration."""
    directory = click.option(
        "--cache-dir", type=LOCAL, help="Folder on a fast disk for shards of an object store."
    )
    return memory_option(directory(limit_option("--cache-limit-gb")(command)))


def columns_option(*names: str, of: str) -> Callable[[F], F]:
    """Add an option that says what a table calls its columns; see `parse_columns`."""
    return click.option(
        *names,
        multiple=True,
        metavar="NAME=COLUMN",
        help=f"What {of} calls a column: ra=RA_DEG,dec=DEC_DEG. Repeatable.",
    )


def scores_options(command: F) -> F:
    """Add what says how SCORES are to be read: ``--columns`` and ``--scores-are``."""
    are = click.option(
        "--scores-are",
        type=click.Choice(["probability", "logit"]),
        help="What the scores are, whatever their column is called.",
    )
    return columns_option("--columns", of="SCORES")(are(command))


def catalog_columns_of(
    texts: tuple[str, ...], catalog: str | None, known: tuple[str, ...]
) -> dict[str, str]:
    """What the catalogue calls its columns."""
    if texts and catalog is None:
        raise click.UsageError("--catalog-column needs --catalog.")
    from lensprep.tables.columns import parse_columns

    return parse_columns(texts, known, "--catalog-column")


def score_columns_of(texts: tuple[str, ...]) -> dict[str, str]:
    """What SCORES calls its columns."""
    from lensprep.tables.columns import parse_columns
    from lenstrain.scoretable import COLUMNS

    return parse_columns(texts, COLUMNS)


def report(result: dict[str, Any], lines: Sequence[str | RenderableType], as_json: bool) -> None:
    """Print the result on standard output: JSON, or lines and tables for people.

    Lines are left to the terminal to wrap, so that paths and commands are copied whole.
    """
    if int(os.environ.get("RANK", "0")):
        return  # under torchrun only the first process reports
    if as_json:
        click.echo(json.dumps(result, default=str))
        return
    aside = result.get("status") == "interrupted"  # how to go on is no result
    for line in lines:
        if isinstance(line, str):
            click.echo(without_control(line), err=aside)
        else:
            print_rich(line)


def exit_if_interrupted(result: dict[str, Any]) -> None:
    """End with the status of the signal that stopped a command, if one did."""
    if result["status"] == "interrupted":
        sys.exit(INTERRUPTED if result["signal"] == signal.SIGINT else PREEMPTED)
