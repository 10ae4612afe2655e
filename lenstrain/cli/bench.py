"""`lenstrain bench`: how fast the loader and the training are on this machine."""

from __future__ import annotations

from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.store import is_remote
from lensprep.terminal import LOCATION, CommandGroup, s3_variables
from lenstrain.cli.options import (
    POSITIVE,
    config_option,
    json_option,
    memory_option,
    report,
    set_option,
)


@click.group(cls=CommandGroup)
def bench() -> None:
    """Measure this machine on a dataset: the loader alone, or whole training steps.

    \b
    Example:
      lenstrain bench loader data/ds
      lenstrain bench train data/ds --config resnet18
    """


@bench.command()
@click.argument("dataset", type=LOCATION)
@click.option("--split", default="train", show_default=True)
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--consumer-rate",
    type=POSITIVE,
    help="Stamps per second of a simulated GPU; the share of time it waits is measured.",
)
@click.option("--seconds", default=20.0, show_default=True, type=POSITIVE)
@click.option(
    "--shuffle",
    type=click.Choice(["global", "block", "none"]),
    help="Order of the epoch; by default global, and block for an object store.",
)
@click.option(
    "--cold",
    is_flag=True,
    help="With nothing of the dataset in memory, as where it is larger; beside random reads.",
)
@memory_option
@s3_variables
@json_option
def loader(
    dataset: str,
    as_json: bool,
    cold: bool,
    shuffle: str | None,
    memory_budget_gb: float,
    **options: Any,
) -> None:
    """Compare the loader with its upper limit.

    A local dataset is compared with the upper limit (a gather from one mapped array) and with
    stock WebDataset; one in an object store with what the same client reads of the same objects
    without the loader. The answer's keys are described in docs/benchmarks.md. With --cold a local
    dataset's pages are dropped first, and what the loader reads from the disk is compared with
    random reads of the same size.

    \b
    Example:
      lenstrain bench loader data/ds --consumer-rate 25000
      lenstrain bench loader data/ds --cold
      lenstrain bench loader s3://bucket/ds --memory-budget 2
    """
    from lenstrain.cli.progress import share_progress

    options["memory_budget"] = int(memory_budget_gb * 1e9)
    remote = is_remote(dataset)
    order = shuffle or ("block" if remote else "global")
    options["shuffle"] = None if order == "none" else order
    run: Any
    if remote and cold:
        raise click.UsageError("--cold is for a local dataset: nothing of a store is in memory.")
    if remote:
        from lenstrain.bench.remote import run_remote_bench as run
    elif cold:
        from lenstrain.bench.cold import run_cold_bench as run
    else:
        from lenstrain.bench.loader import run_loader_bench as run
    with share_progress() as progress:
        result = run(dataset, progress=progress, **options)
    report(result, _loader_lines(result), as_json)


def _loader_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"loader              {result['samples_per_s']:>12,.0f} stamps/s"]
    if "over_random_reads" in result:
        lines += [
            f"random reads        {result['random_reads_per_s']:>12,.0f} stamps/s "
            f"(the loader: {100 * result['over_random_reads']:.0f} % of them)",
            f"read from the disk  {result['read_over_payload']:>12.2f} bytes a byte of pixels",
        ]
    elif "over_plain_client" in result:
        lines += [
            f"the same client     {result['plain_client_samples_per_s']:>12,.0f} stamps/s "
            f"(the loader: {100 * result['over_plain_client']:.0f} % of it)",
            f"first batch after   {result['first_batch_s']:>12.2f} s",
            f"mixing window       {result['mixing_window_samples']:>12,d} stamps",
        ]
    else:
        lines += [
            f"limit (memmap)      {result['memmap_limit_samples_per_s']:>12,.0f} stamps/s",
            f"stock WebDataset    {result['webdataset_samples_per_s']:>12,.0f} stamps/s",
        ]
    if result["stall_fraction"] is not None:
        rate, share = result["consumer_rate"], 100 * result["stall_fraction"]
        lines.append(f"A consumer of {rate:,.0f} stamps/s waits {share:.1f} % of its time")
    return lines


@bench.command()
@click.argument("dataset", type=LOCATION)
@config_option()
@set_option("Override a key of the configuration, such as data.batch_size=512.")
@click.option("--seconds", default=30.0, show_default=True, type=POSITIVE)
@s3_variables
@json_option
def train(
    dataset: str,
    config_path: str | None,
    overrides: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Compare training steps with the best matrix product of this machine.

    The steps are those of `lenstrain train` with the same configuration; nothing is written. Runs
    alone or under torchrun.

    \b
    Example:
      lenstrain bench train data/ds --config v100
    """
    from lenstrain.config import Config

    config = load_config(Config, config_path, overrides)
    from lenstrain.bench.train import run_train_bench
    from lenstrain.cli.progress import share_progress

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
        f"waiting for data {100 * result['data_wait_share']:.1f} % of the time, "
        f"between steps {100 * result['idle_share']:.1f} %",
        f"of a step: {shares}",
        f"{reached:.3g} TFLOP/s, {100 * result['of_matmul']:.0f} % of a matrix product "
        f"({best:.3g} TFLOP/s)",
    ]
