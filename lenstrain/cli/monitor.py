"""`lenstrain monitor`: see how a run is doing."""

from __future__ import annotations

import click

from lensprep.terminal import LOCATION, s3_variables
from lenstrain.cli.options import json_option, report


@click.command()
@click.argument("runs", type=LOCATION, nargs=-1, required=True, metavar="RUN...")
@click.option("--watch", is_flag=True, help="Redraw until all runs have ended.")
@click.option("--once", is_flag=True, help="Look once and exit (the default).")
@click.option(
    "--interval",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0.2),
    help="Seconds between two looks.",
)
@s3_variables
@json_option
def monitor(runs: tuple[str, ...], watch: bool, once: bool, interval: float, as_json: bool) -> None:
    """Show how RUN is doing and what that means; nothing is ever written into it.

    RUN is a run folder, local or s3://, of a run that is running or has ended, or with --watch has
    not begun; or a folder of runs, such as the trials of a sweep. More than four are a table.

    \b
    Example:
      lenstrain monitor runs/a runs/b --watch
    """
    if watch and (once or as_json):
        raise click.UsageError("--watch goes with neither --once nor --json.")
    from lenstrain.monitor import watch as watching

    if watch:
        watching.watch(runs, interval)
        return
    snapshots = watching.read_all(runs)
    if as_json:
        report({"runs": [snapshot.to_dict() for snapshot in snapshots]}, [], as_json)
    else:
        watching.show(snapshots)
