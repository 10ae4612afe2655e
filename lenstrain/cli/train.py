"""`lenstrain train`: make a run."""

from __future__ import annotations

import logging
from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.errors import count_text
from lensprep.store import exists, join_uri
from lensprep.terminal import LOCATION, s3_variables
from lenstrain.cli.options import (
    config_option,
    exit_if_interrupted,
    json_option,
    report,
    set_option,
)


@click.command()
@click.argument("dataset", type=LOCATION)
@config_option()
@click.option(
    "--out", required=True, type=LOCATION, help="Run folder, new or empty; local or s3://."
)
@set_option("Override a key of the configuration, such as optim.lr=1e-3.")
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint in the run folder.")
@s3_variables
@json_option
def train(
    dataset: str,
    config_path: str | None,
    out: str,
    overrides: tuple[str, ...],
    resume: bool,
    as_json: bool,
) -> None:
    """Train a finder on DATASET.

    DATASET is a folder or s3://bucket/folder; data.cache_dir names a folder on a fast disk that
    keeps its shards. Runs alone or under torchrun. SIGTERM saves the state and exits with 75; start
    it again with --resume, also on another machine if RUN is s3://. The files of such a run are
    written to a folder of this machine and sent while it runs.

    \b
    Example:
      lenstrain train data/ds --config resnet18 --out runs/a --set optim.lr=1e-3
    """
    from lenstrain.config import Config

    config = load_config(Config, config_path, overrides)
    from lenstrain.cli.progress import TrainProgress

    elsewhere = config.train.checkpoint_copy is not None
    if resume and not elsewhere and not exists(join_uri(out, "config.toml")):
        logging.getLogger(__name__).info("Note: %s holds no run yet: a new one begins.", out)
    with TrainProgress() as progress:
        progress.doing("loading PyTorch")  # seconds: a wrong key was answered before
        from lenstrain.training.train import train as run_training

        result = run_training(dataset, config, out, resume=resume, progress=progress, announce=True)
    report(result, _train_lines(result), as_json)
    exit_if_interrupted(result)


def _train_lines(result: dict[str, Any]) -> list[str]:
    if result["status"] == "interrupted":
        return [f"Interrupted at step {result['step']}; saved. Continue with --resume."]
    if result["best"] is None:
        return [f"{result['run']}: no epoch had a finite {result['monitor']}."]
    best = f"{result['monitor']} {result['best_value']:.5f} in epoch {result['best_epoch']}"
    how = "stopped early after" if result["status"] == "stopped" else "finished"
    return [f"{how} {count_text(result['epochs'], 'epoch')}; best {best}: {result['best']}"]
