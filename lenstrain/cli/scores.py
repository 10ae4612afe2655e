"""`lenstrain infer`, `evaluate` and `mine`: scores, how good they are, what they get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lensprep.configfile import load_config
from lensprep.terminal import LOCATION
from lenstrain.cli.options import (
    TABLE,
    device_option,
    json_option,
    reading_options,
    report,
    s3_options,
    set_option,
)

if TYPE_CHECKING:
    from lenstrain.scoring.table import ScoresAre

F = TypeVar("F", bound=Callable[..., Any])

OUT_HELP = "Table to write: .parquet, .csv, .csv.gz or .fits."


def _columns_option(*names: str, of: str) -> Callable[[F], F]:
    """Add an option that says what a table calls its columns; see `parse_columns`."""
    return click.option(
        *names,
        multiple=True,
        metavar="NAME=COLUMN",
        help=f"What {of} calls a column: ra=RA_DEG,dec=DEC_DEG. Repeatable.",
    )


def _scores_options(command: F) -> F:
    """Add what says how SCORES are to be read: ``--columns`` and ``--scores-are``."""
    are = click.option(
        "--scores-are",
        type=click.Choice(["probability", "logit"]),
        help="What the scores are, whatever their column is called.",
    )
    return _columns_option("--columns", of="SCORES")(are(command))


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.argument("dataset", type=LOCATION)
@click.option(
    "--split",
    default="val",
    show_default=True,
    help="Split to score. Test is for the end: each way of opening it is counted.",
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
@_columns_option("--columns", "--catalog-column", "catalog_columns", of="the catalogue")
@click.option("--tta", is_flag=True, help="Average the logit over the 8 turns and flips.")
@click.option("--embeddings", is_flag=True, help="Add what the network's last layer sees.")
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(min=1))
@device_option
@click.option(
    "--workers", type=click.IntRange(1), help="Decoding processes [default: one per processor]."
)
@reading_options
@s3_options
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
    decoded on the way and normalised as the checkpoint asks. Runs alone or under torchrun. Parts
    that are finished are kept beside --out if it is interrupted: the same command goes on from
    there, also on another machine.

    \b
    Example:
      lenstrain infer runs/a/checkpoints/best.pt data/ds --split test --out test.parquet
    """
    from lenstrain.cli.progress import stage_progress
    from lenstrain.scoring.infer import infer as score
    from lenstrain.scoring.table import AXIS_COLUMNS

    known = ("key", "file", "ra", "dec", "label", "region_id", *AXIS_COLUMNS)
    columns = _catalog_columns(catalog_columns, options["catalog"], known)
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


def _catalog_columns(
    texts: tuple[str, ...], catalog: str | None, known: tuple[str, ...]
) -> dict[str, str]:
    """What the catalogue calls its columns."""
    if texts and catalog is None:
        raise click.UsageError("--catalog-column needs --catalog.")
    from lensprep.tables.reader import parse_columns

    return parse_columns(texts, known, "--catalog-column")


def _score_columns(texts: tuple[str, ...]) -> dict[str, str]:
    """What SCORES calls its columns."""
    from lensprep.tables.reader import parse_columns
    from lenstrain.scoring.table import COLUMNS

    return parse_columns(texts, COLUMNS)


def _infer_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['rows']:,} rows scored: {result['out']}"]
    left_out = result["filtered"] | result["rejected"]
    if left_out:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        lines.append(
            f"{sum(left_out.values()):,} rows have no score ({reasons}): {result['rejects']}"
        )
    return lines


@click.command()
@click.argument("scores", type=LOCATION)
@click.option(
    "--calibrate-on",
    type=LOCATION,
    help="Scores of another split, to fit calibration and thresholds on.",
)
@click.option("--out", required=True, type=LOCATION, help="Folder for the report.")
@click.option(
    "--compare",
    "compare_with",
    type=LOCATION,
    help="Another model's scores of the same stamps.",
)
@click.option(
    "--catalog",
    type=LOCATION,
    help="Known lenses, a table in lenscat's columns: recall by grade.",
)
@_columns_option("--catalog-column", "catalog_columns", of="the catalogue")
@click.option(
    "--catalog-scores",
    type=LOCATION,
    help="Scores to find the known lenses in; labels are not needed [default: SCORES].",
)
@click.option(
    "--dataset", type=LOCATION, help="Dataset to show stamps from, if not the one the scores name."
)
@click.option(
    "--selection-function",
    is_flag=True,
    help="Fit C(theta_E, seeing, arc S/N, magnitude) and write it for others to use.",
)
@click.option(
    "--population",
    type=LOCATION,
    help="Lenses with the same axes, and perhaps weight, to average that function over.",
)
@_scores_options
@set_option("Override an option of the evaluation, such as resamples=2000.")
@s3_options
@json_option
def evaluate(
    scores: str,
    out: str,
    catalog_columns: tuple[str, ...],
    columns: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
    **inputs: Any,
) -> None:
    """Measure how good SCORES are, with intervals by region, and write a report.

    SCORES is what `lenstrain infer` writes, or any table (parquet, CSV, FITS, VOTable, ...) with
    key, label, logit (or probability) and region_id.

    \b
    Example:
      lenstrain evaluate test.parquet --calibrate-on val.parquet --out report
    """
    from lensprep.tables.catalog import LENSCAT
    from lenstrain.cli.progress import share_progress
    from lenstrain.evaluation.options import EvaluationOptions
    from lenstrain.pages.evaluate import evaluate as run_evaluation

    named = _catalog_columns(catalog_columns, inputs["catalog"], tuple(LENSCAT))
    if inputs["catalog"] is None and inputs["catalog_scores"] is not None:
        raise click.UsageError("--catalog-scores needs --catalog.")
    if inputs["population"] is not None and not inputs["selection_function"]:
        raise click.UsageError("--population needs --selection-function.")
    options = load_config(EvaluationOptions, None, overrides)
    with share_progress() as progress:
        result = run_evaluation(
            scores,
            out,
            catalog_columns=named,
            columns=_score_columns(columns),
            options=options,
            progress=progress,
            **inputs,
        )
    report(result, _evaluate_lines(result), as_json)


def _evaluate_lines(result: dict[str, Any]) -> list[str]:
    auroc = result["auroc"]
    interval = "no interval: one region"
    if auroc["low"] is not None:
        interval = f"{auroc['low']:.4f} to {auroc['high']:.4f}"
    lines = [f"AUROC {auroc['value']:.4f} ({interval})"]
    if result["comparison"]:
        gain = result["comparison"]["auroc"]
        lines.append(f"AUROC {gain['value']:+.4f} against {result['comparison']['other']}")
    if result["known_lenses"]:
        known = result["known_lenses"]
        for cut in known["recall"]:
            lines.append(
                f"{cut['all']['k']} of {cut['all']['n']} known lenses above the threshold for "
                f"{cut['name']}"
            )
    if result["selection_function"] and result["selection_function"]["population"]:
        lines.append(_population_line(result["selection_function"]["population"]))
    return [*lines, f"Report: {result['report']}"]


def _population_line(population: dict[str, Any]) -> str:
    outside = f"{population['outside_share']:.1%} of it lies where no injections are"
    if population["value"] is None:
        return f"Completeness of the population unknown: {outside}"
    interval = "no interval: one region"
    if population["low"] is not None:
        interval = f"{population['low']:.4f} to {population['high']:.4f}"
    return f"Completeness of the population {population['value']:.4f} ({interval}); {outside}"


@click.command()
@click.argument("scores", nargs=-1, required=True, type=LOCATION)
@click.option("--out", required=True, type=TABLE, help=OUT_HELP)
@click.option(
    "--catalog",
    type=LOCATION,
    help="Known lenses, a table with ra, dec: controls near one are left out.",
)
@_columns_option("--catalog-column", "catalog_columns", of="the catalogue")
@_scores_options
@set_option("Override an option: fraction=0.05, factor=4.0, psf_bins=4, radius_arcsec=5.0.")
@s3_options
@json_option
def mine(
    scores: tuple[str, ...],
    out: str,
    catalog: str | None,
    catalog_columns: tuple[str, ...],
    columns: tuple[str, ...],
    scores_are: ScoresAre | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the controls of SCORES that look most like lenses, in each bin of seeing.

    SCORES are tables of `lenstrain infer --split train`; of several the mean logit counts. Train
    with the list by --set data.sample_weights=FILE.

    \b
    Example:
      lenstrain mine train.parquet --catalog known.csv --out hard.parquet
    """
    from lenstrain.scoring.mine import MiningOptions
    from lenstrain.scoring.mine import mine as run_mining

    options = load_config(MiningOptions, None, overrides)
    result = run_mining(
        scores,
        out,
        catalog=catalog,
        catalog_columns=_catalog_columns(catalog_columns, catalog, ("ra", "dec")),
        columns=_score_columns(columns),
        scores_are=scores_are,
        options=options,
    )
    lines = [f"Note: {note}" for note in result["notes"]]
    lines.append(
        f"{result['hard']:,} hard of {result['controls']:,} controls in {len(result['bins'])} bins "
        f"of seeing, {result['excluded']:,} left out near known lenses: {out}"
    )
    report(result, [*lines, f"Train with --set data.sample_weights={out}"], as_json)
