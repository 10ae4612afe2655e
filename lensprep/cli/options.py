"""Options that several commands of `lensprep` have."""

from __future__ import annotations

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), help="Processes [default: one per processor]."
)
