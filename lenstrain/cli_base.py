"""What the commands of the trainer share: options, how errors end them, and how they answer."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lensprep.errors import ProjectError

F = TypeVar("F", bound=Callable[..., Any])

EXIT_PREEMPTED = 75
"""Exit status after SIGTERM: the state is saved, start again with --resume (EX_TEMPFAIL)."""
EXIT_SIGINT = 130
"""Exit status after Ctrl-C, by custom of shells; the state is saved too."""
PATH = click.Path(path_type=Path)
"""Type of an argument or option that names a file or folder."""


class ProjectGroup(click.Group):
    """Turns the project's own errors into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; any other exception keeps its traceback."""
        try:
            return super().invoke(ctx)
        except ProjectError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)


def config_option(help: str = "TOML file; see configs/.", *, required: bool = False) -> Any:
    """Add ``--config``, as ``config_path``."""
    return click.option("--config", "config_path", type=PATH, required=required, help=help)


def set_option(help: str) -> Any:
    """Add ``--set``, as ``overrides``: what `lensprep.configfile.load_config` takes."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"{help} Repeatable."
    )


def device_option(command: F) -> F:
    """Add ``--device``."""
    choices = click.Choice(["auto", "cpu", "cuda"])
    return click.option("--device", default="auto", show_default=True, type=choices)(command)


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
        sys.exit(EXIT_SIGINT if result["signal"] == signal.SIGINT else EXIT_PREEMPTED)
