"""`lenstrain bench`: how fast the loader and the training are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lensprep.configfile import load_config
from lenstrain.cli_base import config_option, json_option, report, set_option


@click.group()
def bench() -> None:
    """Measure this machine on a dataset: the loader alone, or whole training steps.

    \b
    Example:
      lenstrain bench loader data/ds
      lenstrain bench train data/ds --config configs/resnet18.toml
    """


@bench.command()
@click.argument("dataset")
@click.option("--split", default="train", show_default=True)
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--consumer-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Stamps per second of a simulated GPU; the share of time it waits is measured.",
)
@click.option(
    "--seconds", default=20.0, show_default=True, type=click.FloatRange(min=0, min_open=True)
)
@json_option
def loader(dataset: str, as_json: bool, **options: Any) -> None:
    """Measure the loader beside its upper limit and beside stock WebDataset.

    \b
    Example:
      lenstrain bench loader data/ds --consumer-rate 25000
    """
    from lenstrain.bench import run_loader_bench
    from lenstrain.progress import share_progress

    with share_progress() as progress:
        result = run_loader_bench(dataset, progress=progress, **options)
    lines = [
        f"loader              {result['samples_per_s']:>12,.0f} stamps/s",
        f"limit (memmap)      {result['memmap_limit_samples_per_s']:>12,.0f} stamps/s",
        f"stock WebDataset    {result['webdataset_samples_per_s']:>12,.0f} stamps/s",
    ]
    if result["stall_fraction"] is not None:
        rate = f"{options['consumer_rate']:,.0f} stamps/s"
        lines.append(
            f"A consumer of {rate} waits {100 * result['stall_fraction']:.1f} % of its time"
        )
    report(result, lines, as_json)


@bench.command()
@click.argument("dataset")
@config_option()
@set_option("Override a key of the configuration, such as data.batch_size=512.")
@click.option(
    "--seconds", default=30.0, show_default=True, type=click.FloatRange(min=0, min_open=True)
)
@json_option
def train(
    dataset: str,
    config_path: Path | None,
    overrides: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Measure training steps beside the best matrix product of this machine.

    The steps are those of `lenstrain train` with the same configuration; nothing is written. Runs
    alone or under torchrun.

    \b
    Example:
      lenstrain bench train data/ds --config configs/v100.toml
    """
    from lenstrain.config import Config

    config = load_config(Config, config_path, overrides)
    from lenstrain.bench_train import run_train_bench
    from lenstrain.progress import share_progress

    with share_progress() as progress:
        result = run_train_bench(dataset, config, seconds=seconds, progress=progress)
    report(result, _train_lines(result), as_json)


def _train_lines(result: dict[str, Any]) -> list[str]:
    names = ("forward", "backward", "optimizer", "other")
    shares = ", ".join(f"{name} {100 * result[f'{name}_share']:.1f} %" for name in names)
    reached, best = (result[f"{name}_flops_per_s"] / 1e12 for name in ("achieved", "matmul"))
    return [
        f"{result['arch']}, {result['precision']}, batch {result['batch_size']}, "
        f"{result['device']}: {result['samples_per_s']:,.1f} stamps/s",
        f"waiting for data {100 * result['data_wait_share']:.1f} % of the time",
        f"of a step: {shares}",
        f"{reached:.3g} TFLOP/s, {100 * result['of_matmul']:.0f} % of a matrix product "
        f"({best:.3g} TFLOP/s)",
    ]
