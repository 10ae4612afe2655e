"""`lenstrain config`: the configurations that come along."""

from __future__ import annotations

import click

from lensprep.terminal import print_file, print_names
from lenstrain.cli.options import CONFIG, json_option


@click.group()
def config() -> None:
    """Show the configurations that come along, which --config takes by name.

    \b
    Example:
      lenstrain config list
      lenstrain config show demo > mine.toml
    """


@config.command("list")
@json_option
def list_configs(as_json: bool) -> None:
    """List the names, and what each is for.

    \b
    Example:
      lenstrain config list
    """
    print_names(*CONFIG.place, as_json)


@config.command()
@click.argument("name", type=CONFIG)
def show(name: str) -> None:
    """Print a configuration, as a file to copy and change.

    \b
    Example:
      lenstrain config show demo > mine.toml
    """
    print_file(name)
