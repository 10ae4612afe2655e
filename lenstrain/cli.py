"""Command line of the trainer: parse, call, print."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lensprep.configfile import load_config
from lenstrain import __version__
from lenstrain.cli_base import ProjectGroup, json_option, report
from lenstrain.cli_bench import bench

EXIT_PREEMPTED = 75
"""Exit status after SIGTERM: the state is saved, start again with --resume (EX_TEMPFAIL)."""
EXIT_SIGINT = 130
"""Exit status after Ctrl-C, by custom of shells; the state is saved too."""


@click.group(cls=ProjectGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lenstrain")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train, score and evaluate gravitational-lens finders on lensprep datasets."""
    # Read when torch is first imported. Threads that spin while they wait make a small network
    # on a busy machine 2 to 5 times slower (two cores, load 7, three runs of each).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ctx.with_resource(warnings_in_one_line())


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show the project's own warnings as a line for people; Python's go their usual way."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category is UserWarning:
            click.echo(f"Warning: {message}", err=True)
        else:
            usual(message, category, *rest, **named)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


main.add_command(bench)


@main.command()
@click.argument("dataset")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="TOML file; see configs/."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Run folder, new or empty."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the configuration, such as optim.lr=1e-3. Repeatable.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the run folder.")
@json_option
def train(
    dataset: str,
    config_path: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    resume: bool,
    as_json: bool,
) -> None:
    """Train a finder on DATASET.

    Runs alone or under torchrun. SIGTERM saves the state and exits with 75; start it again with
    --resume.

    \b
    Example:
      lenstrain train data/ds --config configs/resnet18.toml --out runs/a --set optim.lr=1e-3
    """
    from lenstrain.config import Config

    config = load_config(Config, config_path, overrides)
    # Torch takes seconds to import: a wrong key is answered before.
    from lenstrain.progress import TrainProgress
    from lenstrain.training.train import train as run_training

    with TrainProgress() as progress:
        result = run_training(dataset, config, out, resume=resume, progress=progress)
    report(result, _train_lines(result), as_json)
    if result["status"] == "interrupted":
        sys.exit(EXIT_SIGINT if result["signal"] == 2 else EXIT_PREEMPTED)


def _train_lines(result: dict[str, Any]) -> list[str]:
    if result["status"] == "interrupted":
        return [f"Interrupted at step {result['step']}; saved. Go on with --resume."]
    if result["best"] is None:
        return [f"{result['run']}: no epoch had a finite {result['monitor']}."]
    best = f"{result['monitor']} {result['best_value']:.5f} in epoch {result['best_epoch']}"
    how = "stopped early after" if result["status"] == "stopped" else "finished"
    return [f"{how} {result['epochs']} epochs; best {best}: {result['best']}"]


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("dataset")
@click.option("--split", default="test", show_default=True, help="Split to score.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Parquet file to write."
)
@click.option(
    "--member",
    "members",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another checkpoint of an ensemble; the score is the mean logit. Repeatable.",
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    help="DATASET is a folder of FITS or NPZ cutouts; their ra, dec (and key or file) are here.",
)
@click.option("--tta", is_flag=True, help="Average the logit over the 8 turns and flips.")
@click.option("--embeddings", is_flag=True, help="Add what the network's last layer sees.")
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
@click.option(
    "--workers", type=click.IntRange(1), help="Decoding processes [default: one per processor]."
)
@json_option
def infer(
    checkpoint: Path,
    dataset: str,
    split: str,
    out: Path,
    members: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Score every stamp of a split of DATASET with CHECKPOINT: one float32 logit a row.

    DATASET may also be a Phase 4c tree, or a folder of cutouts with --catalog: their stamps are
    decoded on the way and normalised as the checkpoint asks. Runs alone or under torchrun. Parts
    that are finished are kept if it is interrupted: the same command goes on from there.

    \b
    Example:
      lenstrain infer runs/a/checkpoints/best.pt data/ds --split test --out test.parquet
    """
    from lenstrain.infer import infer as score
    from lenstrain.progress import stage_progress

    with stage_progress("scoring") as progress:
        result = score(
            [checkpoint, *members], dataset, split=split, out=out, progress=progress, **options
        )
    report(result, _infer_lines(result), as_json)


def _infer_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['rows']:,} rows scored: {result['out']}"]
    left_out = result["filtered"] | result["rejected"]
    if left_out:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        lines.append(
            f"{sum(left_out.values()):,} rows have no score ({reasons}): {result['rejects']}"
        )
    return lines


@main.command()
@click.argument("dataset")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="TOML file; see configs/."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for runs and result."
)
@click.option(
    "--hold-out",
    "factors",
    multiple=True,
    metavar="COLUMN",
    help="Leave out one value of this column after the other. Repeatable  [default: "
    "theta_e_arcsec, src_dmag, lens_model].",
)
@click.option("--split", default="test", show_default=True, help="Split to compare on.")
@click.option(
    "--fpr",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="False-positive rate at which completeness is compared.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the training configuration. Repeatable.",
)
@json_option
def generalize(
    dataset: str,
    config_path: Path | None,
    out: Path,
    factors: tuple[str, ...],
    split: str,
    fpr: float,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train without one kind of lens after the other, and compare on the ones left out.

    One run with all lenses, and one for each value of each column. Finished runs are kept: the
    same command goes on after an interruption. What has one value only is "not testable".

    \b
    Example:
      lenstrain generalize data/ds --config configs/resnet18.toml --out runs/generalize
    """
    from lenstrain.config import Config
    from lenstrain.generalize import FACTORS, TABLE_NAME, as_markdown, check_factors
    from lenstrain.generalize import generalize as run_generalization
    from lenstrain.progress import share_progress

    config = load_config(Config, config_path, overrides)
    check_factors(factors)
    with share_progress() as progress:
        result = run_generalization(
            dataset,
            config,
            out,
            factors=factors or FACTORS,
            split=split,
            fpr=fpr,
            progress=progress,
        )
    table = as_markdown(result).splitlines()[4:]
    report(result, [*table, "", f"Written to {out / TABLE_NAME}"], as_json)


@main.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option(
    "--calibrate-on",
    type=click.Path(path_type=Path),
    help="Scores of another split, to fit calibration and thresholds on.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the report."
)
@click.option(
    "--compare",
    "compare_with",
    type=click.Path(path_type=Path),
    help="Another model's scores of the same stamps.",
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    help="Known lenses, CSV or parquet in lenscat's columns: recall by grade.",
)
@click.option(
    "--catalog-column",
    "catalog_columns",
    multiple=True,
    metavar="NAME=COLUMN",
    help="What the catalogue calls name, ra, dec or grade. Repeatable.",
)
@click.option(
    "--catalog-scores",
    type=click.Path(path_type=Path),
    help="Scores to find the known lenses in; labels are not needed [default: SCORES].",
)
@click.option("--dataset", help="Dataset to show stamps from, if not the one the scores name.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override an option of the evaluation, such as resamples=2000. Repeatable.",
)
@json_option
def evaluate(
    scores: Path,
    out: Path,
    catalog_columns: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
    **inputs: Any,
) -> None:
    """Measure how good SCORES are, with intervals by region, and write a report.

    SCORES is what `lenstrain infer` writes, or any parquet or CSV with key, label, logit (or
    probability) and region_id.

    \b
    Example:
      lenstrain evaluate test.parquet --calibrate-on val.parquet --out report
    """
    from lenstrain.evaluation.catalog import parse_columns
    from lenstrain.evaluation.evaluate import evaluate as run_evaluation
    from lenstrain.evaluation.options import EvaluationOptions
    from lenstrain.progress import share_progress

    columns = parse_columns(catalog_columns)
    if inputs["catalog"] is None and (columns or inputs["catalog_scores"] is not None):
        raise click.UsageError("--catalog-column and --catalog-scores need --catalog.")
    options = load_config(EvaluationOptions, None, overrides)
    with share_progress() as progress:
        result = run_evaluation(
            scores, out, catalog_columns=columns, options=options, progress=progress, **inputs
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
    return [*lines, f"Report: {result['report']}"]


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("dataset")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results  [default: probe in the run folder].",
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override an option of the probes, such as per_class=500. Repeatable.",
)
@json_option
def probe(
    checkpoint: Path,
    dataset: str,
    out: Path | None,
    device: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Probe CHECKPOINT for shortcuts on stamps of DATASET.

    \b
    Example:
      lenstrain probe runs/a/checkpoints/best.pt data/ds
    """
    from lenstrain.probes.options import ProbeOptions

    options = load_config(ProbeOptions, None, overrides)
    from lenstrain.probes.probe import probe as run_probes
    from lenstrain.progress import share_progress

    with share_progress() as progress:
        result = run_probes(
            checkpoint, dataset, out, options=options, device=device, progress=progress
        )
    lines = [f"{name:18} {text}" for name, text in result["readings"].items()]
    report(result, [*lines, f"Report: {result['report']}"], as_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("dataset")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results  [default: audit in the run folder].",
)
@click.option("--scores", type=click.Path(path_type=Path), help="Scores of the test split.")
@click.option(
    "--evaluation", type=click.Path(path_type=Path), help="Folder of `lenstrain evaluate`."
)
@click.option(
    "--probe",
    "probe_path",
    type=click.Path(path_type=Path),
    help="Folder of `lenstrain probe`.",
)
@click.option(
    "--seed-scores",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Scores of the same split by a run with another seed. Repeatable.",
)
@click.option(
    "--left-out",
    multiple=True,
    metavar="COLUMN=VALUE:SCORES",
    help="Scores by a run that was trained without a value. Repeatable.",
)
@click.option("--real", type=click.Path(path_type=Path), help="Scores of real lenses.")
@click.option(
    "--confusers",
    type=click.Path(path_type=Path),
    help="Scores of confusers, blank fields and artefacts, with a column `kind`.",
)
@click.option("--run-checks", is_flag=True, help="Also run the short trainings (minutes).")
@click.option("--only", multiple=True, metavar="ITEM", help="Measure this item only. Repeatable.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="TOML file of thresholds."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a threshold, such as scores.claimed_fprs=[0.01]. Repeatable.",
)
@json_option
def audit(
    run: Path,
    dataset: str,
    out: Path | None,
    probe_path: Path | None,
    run_checks: bool,
    only: tuple[str, ...],
    config_path: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **named: Any,
) -> None:
    """Go through the readiness checklist: is RUN, trained on DATASET, fit to be published.

    Scores, evaluation and probes of the run's best checkpoint are found in the run folder and
    beside it. Exit status: 0 GO, 3 CONDITIONAL, 4 NO-GO.

    \b
    Example:
      lenstrain audit runs/a data/ds --run-checks
    """
    from lenstrain.audit.config import AuditConfig

    config = load_config(AuditConfig, config_path, overrides)
    from lenstrain.audit.audit import audit as run_audit
    from lenstrain.audit.evidence import Supplied
    from lenstrain.audit.report import lines
    from lenstrain.progress import share_progress

    supplied = Supplied(probe=probe_path, **named)
    with share_progress() as progress:
        content, findings = run_audit(
            run,
            dataset,
            out,
            supplied=supplied,
            config=config,
            run_checks=run_checks,
            only=only,
            progress=progress,
        )
    report(content, [*lines(content, findings), f"Report: {content['report']}"], as_json)
    sys.exit(content["exit_code"])


@main.command()
@click.argument("scores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Parquet file to write."
)
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    help="Known lenses (CSV or parquet with ra, dec): controls near one are left out.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override an option: fraction=0.05, factor=4.0, psf_bins=4, radius_arcsec=5.0. "
    "Repeatable.",
)
@json_option
def mine(
    scores: tuple[Path, ...],
    out: Path,
    catalog: Path | None,
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
    from lenstrain.mine import MiningOptions
    from lenstrain.mine import mine as run_mining

    options = load_config(MiningOptions, None, overrides)
    result = run_mining(scores, out, catalog=catalog, options=options)
    lines = [f"Note: {note}" for note in result["notes"]]
    lines.append(
        f"{result['hard']:,} hard of {result['controls']:,} controls in {len(result['bins'])} bins "
        f"of seeing, {result['excluded']:,} left out near known lenses: {out}"
    )
    report(result, [*lines, f"Train with --set data.sample_weights={out}"], as_json)


@main.command()
@click.argument("dataset")
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    help="TOML file with the ranges; see configs/sweep.toml.",
)
@click.option(
    "--study",
    required=True,
    type=click.Path(path_type=Path),
    help="SQLite database of the study, new or to go on with; results lie in a folder beside it.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file, such as search.trials=20 or fixed.train.epochs=3. "
    "Repeatable.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes on the study [default: one per GPU]."
)
@click.option("--worker", type=int, hidden=True)
@json_option
def sweep(
    dataset: str,
    config_path: Path,
    study: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    worker: int | None,
    as_json: bool,
) -> None:
    """Search hyper-parameters on DATASET, refit the best, and recommend how to train.

    Trials are judged on the validation split; the test split is never opened. A trial that fails
    or runs out of memory is recorded and the study goes on. Repeat the command to go on after an
    interruption, or to add trials with a larger search.trials.

    \b
    Example:
      lenstrain sweep data/ds --config configs/sweep.toml --study runs/sweep.db
    """
    from lenstrain.sweep.config import load_plan

    plan = load_plan(config_path, overrides)
    from lenstrain.sweep.sweep import INTERRUPTED, study_database, worker_count
    from lenstrain.sweep.sweep import sweep as run_sweep
    from lenstrain.sweep.work import work

    places = study_database(study)
    if worker is not None:
        done = work(dataset, plan, places, lambda line: click.echo(line, err=True), os.getppid())
        sys.exit(0 if done else INTERRUPTED)
    sets = [part for override in overrides for part in ("--set", override)]
    arguments = ["sweep", dataset, "--config", str(config_path), "--study", str(study), *sets]
    result = run_sweep(dataset, plan, places, arguments, worker_count(workers))
    report(result, _sweep_lines(result), as_json)
    if result["status"] == "interrupted":
        sys.exit(EXIT_SIGINT if result["signal"] == 2 else EXIT_PREEMPTED)


def _sweep_lines(result: dict[str, Any]) -> list[str]:
    if result["status"] == "interrupted":
        return ["Interrupted; the same command goes on."]
    lines = [f"Note: {note}" for note in result["notes"]]
    lines.append(
        ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    )
    for entry in result["refits"]:
        values = ", ".join(f"{value:.4f}" for value in entry["values"])
        lines.append(f"trial {entry['trial']}: {entry['value']:.4f} in the search; refits {values}")
    found = result["recommended"]
    if found is None:
        return [*lines, "No trial succeeded: nothing to recommend. See the failures in sweep.json."]
    return [*lines, f"Figures: {', '.join(result['plots'])}", "Recommended:", found["command"]]


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--watch", is_flag=True, help="Draw again and again until all runs are over.")
@click.option("--once", is_flag=True, help="Look once and end (the default).")
@click.option(
    "--interval",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0.2),
    help="Seconds between two looks.",
)
@json_option
def monitor(runs: tuple[str, ...], watch: bool, once: bool, interval: float, as_json: bool) -> None:
    """Show how RUN is doing and what that means; nothing is ever written into it.

    RUN is a run folder, local or s3://, that may be running, over, or not there yet; or a folder of
    runs, such as the trials of a sweep.

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
    if not as_json:
        watching.show(snapshots)
    report({"runs": [snapshot.to_dict() for snapshot in snapshots]}, [], as_json)
