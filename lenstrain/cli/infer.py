"""`lenstrain infer`: stamps become scores."""

from __future__ import annotations

import re
from typing import Any

import click

from lensprep.errors import count_text
from lensprep.terminal import LOCATION, s3_variables
from lenstrain.cli.options import (
    OUT_HELP,
    TABLE,
    catalog_columns_of,
    columns_option,
    device_option,
    json_option,
    reading_options,
    report,
)


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.argument("dataset", type=LOCATION)
@click.option(
    "--split",
    default="val",
    show_default=True,
    help="Split to score. Keep test for the end: every opening of it is counted.",
)
@click.option("--out", required=True, type=TABLE, help=OUT_HELP)
@click.option(
    "--member",
    "members",
    multiple=True,
    type=LOCATION,
    help="Another checkpoint of an ensemble; the score is the mean logit. Repeatable.",
)
@click.option(
    "--catalog",
    type=LOCATION,
    help="DATASET is a folder of FITS or NPZ cutouts; their ra, dec (and key or file) are here.",
)
@click.option(
    "--survey",
    type=LOCATION,
    default="decals",
    metavar="NAME|FILE",
    show_default=True,
    help="DATASET is a tree of this survey: a name of `lensprep survey list`, or a file.",
)
@columns_option("--columns", "--catalog-column", "catalog_columns", of="the catalogue")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "tf32", "bf16"]),
    help="What the network computes in; tf32 and bf16 are for an A100 or later, and round logits.",
)
@click.option("--tta", is_flag=True, help="Average the logit over the 8 rotations and flips.")
@click.option("--embeddings", is_flag=True, help="Add the input of the network's last layer.")
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(min=1))
@device_option
@click.option(
    "--workers", type=click.IntRange(1), help="Decoding processes [default: one per processor]."
)
@reading_options
@s3_variables
@json_option
def infer(
    checkpoint: str,
    dataset: str,
    split: str,
    out: str,
    members: tuple[str, ...],
    catalog_columns: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Score every stamp of a split of DATASET with CHECKPOINT: one float32 logit a row.

    DATASET may also be a Phase 4c tree, or a folder of cutouts with --catalog: their stamps are
    decoded on the way and normalised as the checkpoint requires. Runs alone or under torchrun. If
    it is interrupted, finished parts are kept next to --out: repeat the command to continue, also
    on another machine.

    \b
    Example:
      lenstrain infer runs/a/checkpoints/best.pt data/ds --split test --out test.parquet
    """
    from lenstrain.cli.progress import stage_progress
    from lenstrain.scoretable import AXIS_COLUMNS
    from lenstrain.scoring.infer import infer as score

    by_band = re.findall(r"\bfile_[A-Za-z][A-Za-z0-9]*(?= *=)", " ".join(catalog_columns))
    known = ("key", "file", *by_band, "index", "ra", "dec", "label", "region_id", *AXIS_COLUMNS)
    columns = catalog_columns_of(catalog_columns, options["catalog"], known)
    with stage_progress("scoring") as progress:
        result = score(
            [checkpoint, *members],
            dataset,
            split=split,
            out=out,
            catalog_columns=columns,
            progress=progress,
            **options,
        )
    report(result, _infer_lines(result), as_json)


def _infer_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{count_text(result['rows'], 'row')} scored: {result['out']}"]
    left_out = result["filtered"] | result["rejected"]
    if left_out:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        lines.append(
            f"{sum(left_out.values()):,} rows have no score ({reasons}): {result['rejects']}"
        )
    return lines
