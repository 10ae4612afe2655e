"""What the commands of the trainer share: options, how errors end them, and how they answer."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lensprep.store.interrupts import INTERRUPTED, PREEMPTED
from lensprep.tables.writer import TABLE_SUFFIXES
from lensprep.terminal import LOCAL, LOCATION, Location

F = TypeVar("F", bound=Callable[..., Any])

TABLE = Location(*TABLE_SUFFIXES)
"""Type of an option that names a table to be written."""


def config_option(help: str = "TOML file; see configs/.", *, required: bool = False) -> Any:
    """Add ``--config``, as ``config_path``."""
    return click.option("--config", "config_path", type=LOCATION, required=required, help=help)


def set_option(help: str) -> Any:
    """Add ``--set``, as ``overrides``: what `lensprep.configfile.load_config` takes."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"{help} Repeatable."
    )


def device_option(command: F) -> F:
    """Add ``--device``."""
    choices = click.Choice(["auto", "cpu", "cuda"])
    return click.option("--device", default="auto", show_default=True, type=choices)(command)


def reading_options(command: F) -> F:
    """Add what says how an object store is read, for commands that have no configuration."""
    for option in (
        click.option(
            "--cache-limit-gb",
            default=900.0,
            show_default=True,
            type=click.FloatRange(min=0),
            help="Most that the cache may hold, of all datasets.",
        ),
        click.option(
            "--cache-dir", type=LOCAL, help="Folder on a fast disk for shards of an object store."
        ),
    ):
        command = option(command)
    return memory_option(command)


def memory_option(command: F) -> F:
    """Add ``--memory-budget``, as ``memory_budget_gb``."""
    return click.option(
        "--memory-budget",
        "memory_budget_gb",
        default=1.0,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        help="Memory in GB for reading ahead, in each process.",
    )(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    )(command)


def report(result: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print the result: an object on standard output, or lines for people on standard error."""
    if int(os.environ.get("RANK", "0")):
        return  # under torchrun the first process speaks for all
    if as_json:
        click.echo(json.dumps(result, default=str))
    else:
        for line in lines:
            click.echo(line, err=True)


def exit_if_interrupted(result: dict[str, Any]) -> None:
    """End with the status of the signal that stopped a command, if one did."""
    if result["status"] == "interrupted":
        sys.exit(INTERRUPTED if result["signal"] == signal.SIGINT else PREEMPTED)
