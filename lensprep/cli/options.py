"""Options that several commands of `lensprep` have."""

from __future__ import annotations

import click

from lensprep.terminal import LOCATION

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
survey_option = click.option(
    "--survey",
    type=LOCATION,
    default="decals",
    metavar="NAME|FILE.toml",
    show_default=True,
    help="What SRC's stamps and columns are: a name of `lensprep survey list`, or a file, local or "
    "s3://.",
)
cutouts_option = click.option(
    "--cutouts",
    "folders",
    type=LOCATION,
    multiple=True,
    metavar="FOLDER",
    help="Folder, local or s3://, of the cutouts of a catalogue SRC; repeatable, in the order of "
    "the catalogues [default: the folder of the catalogue].",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), help="Processes [default: one per processor]."
)
