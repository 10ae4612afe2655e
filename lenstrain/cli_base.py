"""What the commands of the trainer share: how errors end them, and how they answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lensprep.errors import ProjectError

F = TypeVar("F", bound=Callable[..., Any])


class ProjectGroup(click.Group):
    """Turns the project's own errors into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; any other exception keeps its traceback."""
        try:
            return super().invoke(ctx)
        except ProjectError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)


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
