"""The command `lensprep`: parse, call, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by pyarrow's allocator when it is loaded, here and in the workers. It would give the memory
# of each batch of blobs back to the system and take it again for the next: a tenth of conversion.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")
# Read by the C library when the workers start: else each thread that talks to an object store
# would keep a heap of its own.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

import click

from lensprep import __version__
from lensprep.dataset.layout import SPLITS
from lensprep.dataset.normalization import MODES
from lensprep.engine.local import ENGINES, EngineName, make_engine
from lensprep.errors import plain_text, size_text
from lensprep.store import S3Options, check_file, is_remote
from lensprep.store.interrupts import INTERRUPTED, grace
from lensprep.terminal import (
    LOCAL,
    LOCATION,
    PICTURE,
    LocalPath,
    Location,
    ProjectGroup,
    log_lines,
    print_json,
    print_rich,
    progress_bar,
    s3_options,
    write_options,
)

if TYPE_CHECKING:
    from lensprep.convert.sites import Need

_CLUSTER_SECONDS = 30.0
"""Time from a signal to the end of a conversion on a cluster; Slurm kills after as long."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), help="Processes [default: one per processor]."
)


@click.group(
    cls=ProjectGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="lensprep")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn Phase 4c parquet into shards that are WebDataset tars and arrays at once.

    The usual way: check the source, convert it, verify and look at the result.

    \b
    lensprep check    PHASE4C
    lensprep convert  PHASE4C DATASET
    lensprep verify   DATASET --against PHASE4C
    lensprep inspect  DATASET --montage stamps.png
    """
    ctx.with_resource(log_lines())


@main.command()
@click.argument("out", type=LOCATION)
@click.option("--rows", type=click.IntRange(1), required=True, help="Stamps to make.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Another seed, another sky.",
)
@click.option("--regions", type=click.IntRange(3), help="Regions of sky [default: by rows].")
@click.option("--split-fractions", metavar="T/V/T", help="Train/val/test [default: 60/15/25].")
@click.option("--defects", is_flag=True, help="Plant the known defects, and write their truth.")
@click.option(
    "--defect",
    "rates",
    multiple=True,
    metavar="NAME=RATE",
    help="Plant this defect at this rate instead; repeatable.",
)
@s3_options
@workers_option
@json_option
def synth(
    out: str,
    rows: int,
    seed: int,
    regions: int | None,
    split_fractions: str | None,
    defects: bool,
    rates: tuple[str, ...],
    workers: int | None,
    as_json: bool,
    options: S3Options,
) -> None:
    """Make a synthetic Phase 4c tree in OUT: galaxies, lenses, seeing and noise like DECaLS.

    With --defects, OUT/_truth.parquet says of every planted row what must become of it.

    \b
    Example:
      lensprep synth demo/phase4c --rows 2000 --seed 1
    """
    from lensprep.synth import DEFAULT_RATES, synthesize

    planted = dict(DEFAULT_RATES) if defects else {}
    planted |= dict(map(_rate, rates))
    done = 0
    with progress_bar() as show:

        def progress(more: int) -> None:
            nonlocal done
            done += more
            show("stamps", done, rows)

        result = synthesize(
            out,
            rows=rows,
            seed=seed,
            workers=workers,
            regions=regions,
            split_fractions=_fractions(split_fractions),
            defects=planted or None,
            progress=progress,
            options=options,
        )
    if as_json:
        print_json(result)
        return
    size = size_text(result["bytes"])
    click.echo(f"{result['rows']:,} stamps in {out}: {result['files']} files, {size}")
    for name, split in result["splits"].items():
        click.echo(
            f"  {name:<6}{split['rows']:>8,} stamps  {split['injections']:>8,} lenses  "
            f"{split['regions']:>4} regions"
        )
    if planted:
        click.echo(f"{result['truth']}: what was planted, and what must become of it")


def _rate(text: str) -> tuple[str, float]:
    """A defect's rate from the command line."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        what = f"write it as NAME=RATE, got {text!r}"
        raise click.BadParameter(what, param_hint="--defect") from None


def _fractions(text: str | None) -> dict[str, float] | None:
    """Split fractions from text such as 60/15/25."""
    if text is None:
        return None
    try:
        return dict(zip(SPLITS, map(float, text.split("/")), strict=True))
    except ValueError:
        what = f"write them as 60/15/25, got {text!r}"
        raise click.BadParameter(what, param_hint="--split-fractions") from None


@main.command()
@click.argument("src", type=LOCATION)
@click.option("--pixels", is_flag=True, help="Decode the stamps too: duplicate images, bad blobs.")
@click.option("--fractions", metavar="train=F,val=F,test=F", help="What the splits should be.")
@click.option(
    "--rejects",
    type=Location(".csv", ".parquet"),
    metavar="FILE",
    help="List every row that conversion would leave out, with its reason: .csv or .parquet.",
)
@s3_options
@workers_option
@json_option
def check(
    src: str,
    pixels: bool,
    fractions: str | None,
    rejects: str | None,
    workers: int | None,
    as_json: bool,
    options: S3Options,
) -> None:
    """Check that SRC is the data that you think it is. Reads no stamps unless asked to.

    The verdict is "ok" or "warnings" (exit status 0), or "failed" (1).

    \b
    Example:
      lensprep check s3a-copy/stamps --json > check.json
      lensprep check s3a-copy/stamps --rejects rejects.csv
    """
    from lensprep.checks.check import check as run_check
    from lensprep.checks.check import parse_fractions, render_text

    if rejects is not None:
        check_file(rejects, options)
    with progress_bar() as show:
        report = run_check(
            src,
            pixels=pixels,
            rejects=rejects,
            declared_fractions=parse_fractions(fractions) if fractions else None,
            workers=workers,
            progress=lambda done, total: show("rows", done, total),
            options=options,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print_rich(render_text(report))
    sys.exit(report.exit_code)


@main.command()
@click.argument("src", type=LOCATION)
@click.argument("dataset", type=LOCATION)
@workers_option
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the global shuffle.")
@click.option("--shard-rows", type=click.IntRange(1), default=8192, show_default=True)
@click.option("--normalize", type=click.Choice(MODES), default="mad_stamp", show_default=True)
@click.option("--clip", type=float, default=10.0, show_default=True, help="Largest stored value.")
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
    "--skip-bad-files", is_flag=True, help="Leave out corrupt parquet, and account for it."
)
@click.option(
    "--drop-column",
    "drop_columns",
    multiple=True,
    metavar="NAME",
    help="Leave out this column of SRC, which may not be a required one; repeatable.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted conversion.")
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(ENGINES),
    default="local",
    show_default=True,
    help="What runs the work: processes of this machine, or a cluster.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Of the Dask scheduler or Spark master [default: a cluster of --workers processes here, "
    "or that of spark-submit].",
)
@click.option(
    "--work",
    type=LOCATION,
    metavar="FOLDER",
    help="Where the runs between the two rounds lie, as large as the dataset: a local folder or "
    "s3:// [default: DATASET/.work].",
)
@click.option(
    "--keep-local",
    type=LOCAL,
    metavar="FOLDER",
    help="Have a dataset that is made in an object store in this local folder as well.",
)
@write_options
@s3_options
@json_option
def convert(
    src: str,
    dataset: str,
    workers: int | None,
    resume: bool,
    engine_name: EngineName,
    scheduler: str | None,
    work: str | None,
    keep_local: Path | None,
    as_json: bool,
    options: S3Options,
    **settings: Any,
) -> None:
    """Convert the Phase 4c tree SRC into DATASET.

    Every row gets in, or is counted with its reason and listed in rejects.parquet. The same rows
    and seed give the same bytes, whatever the workers, engine, files or interruptions. With a
    cluster all its workers must see SRC and DATASET under the same paths.

    SRC and DATASET may each be s3://. Shards are then sent as they are finished, and only those
    under way are on the local disk (the folder for temporary files: TMPDIR).

    \b
    Example:
      lensprep convert demo/phase4c demo/dataset --workers 2
      lensprep convert /shared/phase4c /shared/lenses --engine dask --scheduler tcp://host:8786
      lensprep convert s3://survey/phase4c s3://lenses/v1 --work /nvme/work
    """
    from lensprep.convert.conversion import ConvertConfig
    from lensprep.convert.conversion import convert as run_convert

    if options.put_arguments() and not (is_remote(dataset) or is_remote(work or "")):
        raise click.UsageError("--storage-class and --encryption are for objects: give s3://.")
    try:
        config = ConvertConfig(**settings)
        chosen = make_engine(engine_name, workers=workers, scheduler=scheduler)
        # Its own processes a conversion ends itself, before it tidies up behind them.
        # A cluster is given back, which takes longer than to end processes of this machine.
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
        click.echo("Stopped. What is done is kept: run the same command with --resume.", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        print_json(result)
        return
    _print_account(result)
    click.echo(
        f"{dataset}: {result['accepted']:,} stamps in {result['seconds']:.1f} s "
        f"({result['stamps_per_s']:,.0f}/s), dataset {result['dataset_id'][:12]}"
    )


def _announce(rows: int, needs: list[Need]) -> None:
    """Say before the work what room it takes, and where."""
    if len(needs) == 1 and needs[0].is_local:
        click.echo(
            f"{rows:,} rows; up to {size_text(needs[0].bytes)} of disk while it runs", err=True
        )
        return
    click.echo(f"{rows:,} rows; while it runs up to", err=True)
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
        click.echo(f"read twice {rows:>12,}  rows of row groups that came damaged over the network")
    for name, split in result["splits"].items():
        classes = split["classes"]
        click.echo(
            f"{name:<6} {split['rows']:>12,} stamps in {split['shards']} shards: "
            f"{classes['0']:,} non-lenses, {classes['1']:,} lenses"
        )


@main.command()
@click.argument("dataset", type=LOCATION)
@click.option(
    "--against",
    type=LOCATION,
    metavar="SRC",
    help="Derive rows again from this source and compare.",
)
@click.option("--sample", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--all", "every", is_flag=True, help="Compare every row with the source.")
@s3_options
@workers_option
@json_option
def verify(
    dataset: str,
    against: str | None,
    sample: int,
    every: bool,
    workers: int | None,
    as_json: bool,
    options: S3Options,
) -> None:
    """Read every byte of DATASET and compare it with the manifest. Exit status 1 on any fault.

    \b
    Example:
      lensprep verify demo/dataset --against demo/phase4c
    """
    from lensprep.inspection.verify import verify as run_verify

    with progress_bar() as show:
        result = run_verify(
            dataset,
            against=against,
            sample=None if every else sample,
            workers=workers,
            progress=lambda done, total: show("stamps", done, total),
            options=options,
        )
    if as_json:
        print_json(result)
    else:
        for fault in result["faults"]:
            row = "" if fault["row"] is None else f", row {fault['row']}"
            offset = "" if fault["offset"] is None else f", offset {fault['offset']}"
            click.echo(plain_text(f"{fault['file']}{row}{offset}: {fault['what']}"))
        compared = f", {result['compared']:,} compared with the source" if against else ""
        count = len(result["faults"])
        state = "ok" if result["ok"] else f"{count} fault{'s' * (count > 1)}"
        click.echo(f"{result['shards']} shards, {result['rows']:,} stamps{compared}: {state}")
    sys.exit(0 if result["ok"] else 1)


@main.command()
@click.argument("dataset", type=LOCAL)
@click.argument("destination", type=LOCATION, metavar="s3://BUCKET/FOLDER")
@write_options
@s3_options
@json_option
def upload(dataset: Path, destination: str, as_json: bool, options: S3Options) -> None:
    """Copy a finished dataset to an object store; run it again to go on after an interruption.

    What is there with the same digest is skipped, and nothing is replaced. The manifest comes
    last, so that nobody sees half a dataset.

    \b
    Example:
      lensprep upload /nvme/lenses s3://bucket/lenses
    """
    from lensprep.transfer import upload as run_upload

    _transfer(run_upload, str(dataset), destination, options, as_json)


@main.command()
@click.argument("uri", type=LOCATION, metavar="s3://BUCKET/FOLDER")
@click.argument("dataset", type=LOCAL)
@s3_options
@json_option
def download(uri: str, dataset: Path, as_json: bool, options: S3Options) -> None:
    """Copy a dataset from an object store; run it again to go on after an interruption.

    Every file is compared with its digest before it gets its name; what is there is skipped.

    \b
    Example:
      lensprep download s3://bucket/lenses /nvme/lenses
    """
    from lensprep.transfer import download as run_download

    _transfer(run_download, uri, str(dataset), options, as_json)


def _transfer(
    move: Callable[..., dict[str, Any]],
    source: str,
    destination: str,
    options: S3Options,
    as_json: bool,
) -> None:
    try:
        with progress_bar() as show:
            result = move(source, destination, options, progress=show)
    except KeyboardInterrupt:
        click.echo("Stopped. What is done is kept: run the same command again.", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{result['destination']}: {result['sent_files']:,} files, "
        f"{size_text(result['sent_bytes'])} in {result['seconds']:.1f} s "
        f"({size_text(result['bytes_per_s'])}/s); "
        f"{result['skipped_files']:,} were there; dataset {result['dataset_id'][:12]}"
    )


@main.command()
@click.argument("location", type=LOCATION, metavar="DATASET|SHARD")
@click.option("--split", help="Only this split.")
@click.option("--sample", type=click.IntRange(0), help="Show this record in full, by position.")
@click.option(
    "--montage",
    type=PICTURE,
    help="Draw a sample of stamps into this picture: .png, .jpg or .pdf.",
)
@click.option(
    "--count", type=click.IntRange(1), default=48, show_default=True, help="Stamps in it."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the montage's draw.",
)
@s3_options
@json_option
def inspect(
    location: str,
    split: str | None,
    sample: int | None,
    montage: str | None,
    count: int,
    seed: int,
    as_json: bool,
    options: S3Options,
) -> None:
    """Show what is in a dataset, in one shard of it, or in a tar alone.

    \b
    Example:
      lensprep inspect demo/dataset --split test --sample 17 --montage stamps.png
    """
    from lensprep.inspection.inspect import inspect_dataset
    from lensprep.inspection.montage import write_montage
    from lensprep.inspection.text import render_text

    if montage is not None:
        check_file(montage, options)
    inspection = inspect_dataset(location, split=split, sample=sample, options=options)
    keys = []
    if montage is not None:
        keys = write_montage(
            location, montage, split=split, count=count, seed=seed, options=options
        )
    if as_json:
        print_json({**inspection.to_dict(), "montage": montage})
        return
    print_rich(render_text(inspection))
    if montage is not None:
        click.echo(f"{montage}: {len(keys)} stamps")


@main.command()
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
    src: str | None,
    rows: int | None,
    rounds: int | None,
    folder: Path | None,
    as_json: bool,
    options: S3Options,
) -> None:
    """Measure this machine: the usual way, ours, and inflating alone, on one core; two workers.

    With SRC its own stamps are used; otherwise stamps like real ones are made.

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
            folder=folder,
            progress=show,
            options=options,
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
