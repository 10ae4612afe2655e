"""`lensprep counterfactual`: controls that take a shortcut away."""

from __future__ import annotations

from typing import Any

import click

from lensprep.cli.options import json_option, workers_option
from lensprep.dataset.layout import COUNTERFACTUALS
from lensprep.errors import count_text, size_text
from lensprep.terminal import LOCATION, print_json, progress_bar, s3_options


@click.command()
@click.argument("src", type=LOCATION)
@click.argument("out", type=LOCATION)
@click.option(
    "--kinds",
    metavar="K,K",
    default=",".join(COUNTERFACTUALS),
    show_default=True,
    help="What to make of each host.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of the non-lenses that become hosts.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--psf",
    type=click.Choice(["gaussian", "moffat"]),
    default="gaussian",
    show_default=True,
    help="Shape of the PSF, of each host's own width: gaussian is what Phase 4c injects with.",
)
@click.option(
    "--photon-noise/--no-photon-noise",
    default=True,
    show_default=True,
    help="Whether added light brings its Poisson noise.",
)
@click.option("--resume", is_flag=True, help="Resume an interrupted run of the same settings.")
@s3_options
@workers_option
@json_option
def counterfactual(src: str, out: str, kinds: str, as_json: bool, **named: Any) -> None:
    """Make counterfactuals of the Phase 4c tree SRC in OUT, a tree of the same format.

    Each host, a non-lens, gets the light of a donor, a lens of its split: as a source that is not
    lensed (unlensed), in one image (magnified), spread over an ellipse (extended), as an arc in
    pieces (scattered), as a neighbour (companion): all labelled non-lens. And as the arc itself
    (lensed), labelled lens, to which the others are compared. A finder that learns from them
    cannot go by extra light. Convert both trees into one dataset.

    \b
    Example:
      lensprep counterfactual demo/phase4c demo/counterfactuals --share 0.2
      lensprep convert demo/phase4c demo/counterfactuals demo/dataset
    """
    from lensprep.counterfactual import make_counterfactuals

    wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    with progress_bar() as show:
        result = make_counterfactuals(src, out, kinds=wanted, progress=show, **named)
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{count_text(result['rows'], 'counterfactual')} in {out}: "
        f"{count_text(result['families'], 'family')}, {count_text(result['files'], 'file')}, "
        f"{size_text(result['bytes'])}"
    )
    for kind, rows in result["kinds"].items():
        click.echo(f"  {kind:<12}{rows:>8,}")
    for reason, rows in result["skipped"].items():
        click.echo(f"  not made    {rows:>8,}  {reason}")
    click.echo("AUROC of lenses against     controls   counterfactuals   (0.5: not told apart)")
    for name, areas in result["balance"].items():
        cells = (areas.get(group) for group in ("controls", "counterfactuals"))
        text = "".join(f"{'-' if area is None else f'{area:.3f}':>12}" for area in cells)
        click.echo(f"  by {name:<20}{text}")
