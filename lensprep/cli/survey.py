"""`lensprep survey`: the descriptions of surveys that come along."""

from __future__ import annotations

import click

from lensprep.cli.options import json_option
from lensprep.terminal import NamedFile, print_file, print_names

SURVEY = NamedFile("lensprep", "surveys")


@click.group()
def survey() -> None:
    """Show what comes along for surveys other than DECaLS, which is built in.

    Each is an example to copy: stamps and columns of other tables have other sizes and names.

    \b
    Example:
      lensprep survey list --json
      lensprep survey show hsc > mine.toml
    """


@survey.command("list")
@json_option
def list_surveys(as_json: bool) -> None:
    """List the names that --survey takes, and what each is.

    \b
    Example:
      lensprep survey list
    """
    print_names(*SURVEY.place, as_json)


@survey.command()
@click.argument("name", type=SURVEY)
def show(name: str) -> None:
    """Print the file of a survey.

    \b
    Example:
      lensprep survey show hsc > mine.toml
    """
    print_file(name)
