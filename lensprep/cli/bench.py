"""`lensprep bench`: how fast conversion is on this machine."""

from __future__ import annotations

from typing import Any

import click

from lensprep.cli.options import json_option
from lensprep.terminal import LOCATION, LocalPath, print_json, progress_bar, s3_options


@click.command()
@click.argument("src", type=LOCATION, required=False)
@click.option("--rows", type=click.IntRange(1), help="Rows of each round.")
@click.option("--rounds", type=click.IntRange(1), help="Repetitions; the figures are medians.")
@click.option(
    "--folder",
    type=LocalPath(file_okay=False, exists=True),
    help="Disk to measure on [default: that of temporary files].",
)
@s3_options
@json_option
def bench(
    src: str | None, rows: int | None, rounds: int | None, as_json: bool, **named: Any
) -> None:
    """Measure this machine: the usual way, ours and inflating alone on one core; then two workers.

    SRC gives the stamps; without it, realistic ones are made.

    \b
    Example:
      lensprep bench demo/phase4c
    """
    from lensprep.bench import DEFAULT_ROUNDS, DEFAULT_ROWS, run_bench

    with progress_bar() as show:
        result = run_bench(
            src,
            rows=rows or DEFAULT_ROWS,
            rounds=rounds or DEFAULT_ROUNDS,
            progress=show,
            **named,
        )
    if as_json:
        print_json(result)
        return
    for name, what in (
        ("seed_path_stamps_per_s", "np.load, np.median, TarWriter"),
        ("stamps_per_s", "lensprep convert"),
        ("inflate_floor_stamps_per_s", "inflating alone (the floor)"),
    ):
        click.echo(f"{what:<32}{result[name]:>10,.0f} stamps/s on one core")
    click.echo(
        f"{result['speedup']:.2f} times the usual way; {result['over_floor']:.2f} times the "
        f"floor's time ({result['rows']:,} rows, medians of {len(result['runs'])} rounds)"
    )
    if result["two_over_one"] is not None:
        click.echo(
            f"two workers: {result['two_workers_stamps_per_s']:,.0f} stamps/s, "
            f"{result['two_over_one']:.2f} times one ({result['workers_rows']:,} rows)"
        )
