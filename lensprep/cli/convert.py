"""`lensprep convert`: a source becomes a dataset."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lensprep.cli.options import cutouts_option, json_option, survey_option, workers_option
from lensprep.dataset.layout import SPLITS
from lensprep.dataset.normalization import DEFAULT_CLIP, DEFAULT_MODE, MODES
from lensprep.engine import ENGINES, make_engine
from lensprep.errors import count_text, size_text
from lensprep.source.catalog import COLUMNS
from lensprep.store import S3Options, is_remote
from lensprep.store.interrupts import INTERRUPTED, grace
from lensprep.tables.columns import parse_columns
from lensprep.terminal import (
    LOCAL,
    LOCATION,
    fractions_option,
    print_json,
    print_rich,
    progress_bar,
    s3_options,
    write_options,
)
from lensprep.texttable import TextTable

if TYPE_CHECKING:
    from lensprep.convert.sites import Need


_CLUSTER_SECONDS = 30.0
"""Time from a signal to the end of a conversion on a cluster; then Slurm kills the process."""


@click.command()
@click.argument("src", type=LOCATION, nargs=-1, required=True)
@click.argument("dataset", type=LOCATION)
@survey_option
@workers_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the global shuffle.")
@click.option(
    "--shard-rows",
    type=click.IntRange(1),
    help="Rows of a shard, on average [default: 8192; fewer of stamps that are larger than those "
    "of DECaLS, so that a shard has 220 to 440 MB].",
)
@click.option("--normalize", type=click.Choice(MODES), default=DEFAULT_MODE, show_default=True)
@click.option(
    "--clip", type=float, default=DEFAULT_CLIP, show_default=True, help="Largest stored value."
)
@click.option(
    "--max-reject-rate",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Commit nothing if a larger share of the rows is rejected.",
)
@click.option(
    "--max-bad-pixel-frac", type=float, help="Leave out rows with a larger bad_pixel_frac."
)
@click.option("--where", help="Keep only rows for which this is true: 'psfsize_r < 1.4'.")
@click.option(
    "--skip-bad-files",
    is_flag=True,
    help="Leave out corrupt parquet files and row groups, and record them.",
)
@click.option(
    "--drop-column",
    "drop_columns",
    multiple=True,
    metavar="NAME",
    help="Leave out this column of SRC, which may not be a required one; repeatable.",
)
@cutouts_option
@click.option(
    "--columns",
    "--catalog-column",
    "columns",
    multiple=True,
    metavar="NAME=COLUMN,...",
    help="What catalogues call their columns: id=objid,ra=RA_DEG,label=is_lens; NAME is one of "
    f"{', '.join(COLUMNS)}.",
)
@click.option(
    "--grade-lens",
    metavar="GRADES",
    help="Grades that mean a lens in catalogues without labels, as in A,B; rows of other grades "
    "are left out.",
)
@fractions_option(
    "Shares of the regions of catalogues in each split, where neither the catalogue nor a tree "
    "around states it [default: train=0.8,val=0.1,test=0.1].",
)
@click.option(
    "--drop-overlap",
    is_flag=True,
    help="Leave out cutouts that share sky with a stamp of another split, instead of stopping.",
)
@click.option("--resume", is_flag=True, help="Resume an interrupted conversion.")
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(list(ENGINES)),
    default="local",
    show_default=True,
    help="What runs the work: processes of this machine, or a cluster.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Address of the Dask scheduler or Spark master [default: a cluster of --workers processes "
    "on this machine, or that of spark-submit].",
)
@click.option(
    "--work",
    type=LOCATION,
    metavar="FOLDER",
    help="Folder, local or s3://, for the runs between the two rounds, which are as large as the "
    "dataset [default: DATASET/.work].",
)
@click.option(
    "--keep-local",
    type=LOCAL,
    metavar="FOLDER",
    help="Keep a copy of a dataset that is made in an object store in this local folder.",
)
@write_options
@s3_options
@json_option
def convert(
    src: tuple[str, ...],
    dataset: str,
    survey: str,
    workers: int | None,
    resume: bool,
    engine_name: str,
    scheduler: str | None,
    work: str | None,
    keep_local: Path | None,
    as_json: bool,
    options: S3Options,
    folders: tuple[str, ...],
    columns: tuple[str, ...],
    grade_lens: str | None,
    fractions: dict[str, float] | None,
    drop_overlap: bool,
    **settings: Any,
) -> None:
    """Convert one or more SRC, trees or catalogues of cutouts, into DATASET.

    Every row is converted, or counted with its reason and listed in rejects.parquet. The same rows
    and seed give the same bytes, whatever the workers, engine, files or interruptions. On a
    cluster all workers must see SRC and DATASET under the same paths.

    Of several trees, the paths of files (source_file) begin with the last folders of each SRC, as
    many as tell all of them apart.

    A SRC that is a table (CSV, FITS, VOTable, ...) is a catalogue: ra, dec, a label or a grade,
    and file or key of each cutout, FITS or NPZ. Cutouts get region and split of the trees around
    them.

    SRC and DATASET may each be s3://. Shards are then sent as they are finished, and only
    unfinished ones are on the local disk (in the folder for temporary files: TMPDIR).

    \b
    Example:
      lensprep convert demo/phase4c demo/dataset --workers 2
      lensprep convert demo/phase4c demo/counterfactuals demo/dataset
      lensprep convert hsc/stamps hsc/dataset --survey hsc
      lensprep convert demo/phase4c lenses.csv demo/dataset --cutouts cutouts
      lensprep convert /shared/phase4c /shared/lenses --engine dask --scheduler tcp://host:8786
      lensprep convert s3://survey/phase4c s3://lenses/v1 --work /nvme/work
    """
    from lensprep.convert import ConvertConfig, CutoutConfig
    from lensprep.convert import convert as run_convert
    from lensprep.source.survey import load_survey

    if options.put_arguments() and not (is_remote(dataset) or is_remote(work or "")):
        raise click.UsageError("--storage-class and --encryption are for objects: give s3://.")
    try:
        cutouts = _cutout_settings(folders, columns, grade_lens, fractions, drop_overlap)
        config = ConvertConfig(
            survey=load_survey(survey, options),
            cutouts=CutoutConfig(**cutouts) if cutouts else None,
            **settings,
        )
        chosen = make_engine(engine_name, workers=workers, scheduler=scheduler)
        # A conversion ends local processes itself, before it cleans up after them. Giving back a
        # cluster takes longer than ending processes of this machine.
        lent = engine_name != "local"
        with (
            grace(_CLUSTER_SECONDS) if lent else nullcontext(),
            chosen if lent else nullcontext() as engine,
            progress_bar() as show,
        ):
            result = run_convert(
                src,
                dataset,
                config,
                workers=workers,
                engine=engine,
                resume=resume,
                work=work,
                keep_local=None if keep_local is None else str(keep_local),
                progress=show,
                options=options,
                announce=_announce,
            )
    except KeyboardInterrupt:
        click.echo("Stopped. Finished work is kept: run the same command with --resume.", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        print_json(result)
        return
    _print_account(result)
    click.echo(
        f"{dataset}: {result['accepted']:,} stamps in {result['seconds']:.1f} s "
        f"({result['stamps_per_s']:,.0f}/s), dataset {result['dataset_id'][:12]}"
    )


def _cutout_settings(
    folders: tuple[str, ...],
    columns: tuple[str, ...],
    grade_lens: str | None,
    fractions: dict[str, float] | None,
    drop_overlap: bool,
) -> dict[str, Any]:
    """What the options say of catalogues; empty without any."""
    given: dict[str, Any] = {
        "folders": folders,
        "columns": tuple(sorted(parse_columns(columns, COLUMNS).items())),
        "grade_lens": tuple(sorted(g.strip() for g in (grade_lens or "").split(",") if g.strip())),
        "drop_overlap": drop_overlap,
    }
    if fractions is not None:
        given["fractions"] = tuple(fractions.get(split, 0.0) for split in SPLITS)
    return {name: value for name, value in given.items() if value}


def _announce(rows: int, needs: list[Need]) -> None:
    """Say before the work how much space it takes, and where."""
    if len(needs) == 1 and needs[0].is_local:
        click.echo(
            f"{count_text(rows, 'row')}; up to {size_text(needs[0].bytes)} of disk while it runs",
            err=True,
        )
        return
    click.echo(f"{count_text(rows, 'row')}; while it runs up to", err=True)
    for need in needs:
        kind = "local disk" if need.is_local else "object store"
        click.echo(f"{size_text(need.bytes):>12} in {need.where} ({kind})", err=True)


def _print_account(result: dict[str, Any]) -> None:
    click.echo(f"input rows {result['input_rows']:>12,}")
    click.echo(f"accepted   {result['accepted']:>12,}")
    for kind in ("filtered", "rejected"):
        click.echo(f"{kind:<11}{sum(result[kind].values()):>12,}")
        for reason, rows in result[kind].items():
            click.echo(f"  {reason:<20}{rows:>12,}")
    if result["read_again"]:
        rows = result["read_again"]
        click.echo(
            f"read twice {rows:>12,}  rows of row groups that arrived damaged over the network"
        )
    _print_sources(result)
    for name, split in result["splits"].items():
        classes = split["classes"]
        click.echo(
            f"{name:<6} {split['rows']:>12,} stamps in {count_text(split['shards'], 'shard')}: "
            f"{count_text(classes['0'], 'non-lens')}, {count_text(classes['1'], 'lens')}"
        )
        if kinds := split.get("counterfactuals"):
            of_them = ", ".join(f"{kind} {rows:,}" for kind, rows in kinds.items())
            click.echo(f"       {sum(kinds.values()):>12,} of them are counterfactuals: {of_them}")


def _print_sources(result: dict[str, Any]) -> None:
    """The account by source, origin and kind, and objects that two sources have."""
    sources = result.get("sources", {})
    if not sources:
        return
    table = TextTable(
        "source", "origin", "kind", "input", "accepted", "filtered", "rejected",
        left=("origin", "kind"),
    )  # fmt: skip
    for source, origins in sources.items():
        for origin, kinds in origins.items():
            for kind, counts in kinds.items():
                out = (sum(counts[name].values()) for name in ("filtered", "rejected"))
                numbers = (counts["input_rows"], counts["accepted"], *out)
                table.add(source, origin, kind, *(f"{number:,}" for number in numbers))
    print_rich(table)
    same = result["same_objects"]
    if same["pairs"]:
        click.echo(
            f"{count_text(same['pairs'], 'pair')} of rows of one object (nearer than 1 arcsec), "
            f"{same['identical_pixels']:,} of them with the same pixels; "
            f"{same['contradicting_labels']:,} have two labels"
        )
