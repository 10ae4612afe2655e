"""Whether a machine can train, how long an epoch takes, and what to mend before.

report = run_doctor("/nvme/lenses", Config())
report["findings"], report["epoch"]["seconds"], doctor_facts(report)
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from lensprep.checks.finding import Finding
from lensprep.dataset import DECALS, Dataset
from lensprep.dataset.layout import MANIFEST_NAME
from lensprep.errors import ProjectError, size_text, time_text
from lensprep.machine import (
    Tell,
    closed,
    dataset_facts,
    judged,
    machine_facts,
    machine_report,
    passed,
    source_text,
    store_report,
)
from lensprep.store import is_remote
from lenstrain.config import Config

if TYPE_CHECKING:
    from lenstrain.training.run import Run

STEPS_S: Final = 3.0
"""Time for the steps that are measured."""
_LOADER_S: Final = 1.5
_READS_S: Final = 0.5
_READS_AT_ONCE: Final = 16
_RANGES_ROWS: Final = 8192
"""Rows that are read from a store to measure it."""
_LONG_S: Final = 3600
"""A run that takes longer on a CPU is worth a warning."""


def run_doctor(
    dataset: str | None,
    config: Config,
    *,
    disks: Sequence[Path] = (),
    store: str | None = None,
    tell: Tell = lambda what: None,
) -> dict[str, Any]:
    """Look at the machine, and at how an epoch of a configuration goes on it.

    Parameters
    ----------
    dataset : str, optional
        What is to be trained on; nothing is written into it, nor into a cache. Without it the
        device is measured alone, on stamps of DECaLS.
    config : Config
    disks : sequence of Path
        Folders whose disks are measured; the current one, that of temporary files and that of the
        cache if none is given.
    store : str, optional
        Folder of an object store, in which an object is written and removed.
    tell : callable
        Called with what is being measured.

    Returns
    -------
    dict
        Described in docs/how-to/doctor.md.
    """
    cache = config.data.cache_dir
    if cache is not None and not disks and Path(cache).is_dir():
        disks = [Path(cache)]
    report, found = machine_report(("train",), disks=disks, store=store, options=None, tell=tell)
    report |= {"gpus": [], "device": None, "dataset": None, "epoch": None}
    findings = list(found)
    try:
        tell("loading PyTorch")
        import torch  # noqa: F401 - whether it can be loaded at all
    except ImportError as error:
        if report["extras"]["train"]:
            findings.append(judged("torch", "blocker", None, f"PyTorch cannot be loaded: {error}."))
        return report | closed(findings)
    findings += look_at_gpus(report)
    try:
        findings += _look_at_epoch(dataset, config, report, tell)
    except ProjectError as error:
        findings.append(judged("epoch", "blocker", dataset, str(error)))
    return report | closed(findings)


# ---------------------------------------------------------------------------------------------
# Devices
# ---------------------------------------------------------------------------------------------


def look_at_gpus(report: dict[str, Any]) -> Iterator[Finding]:
    """Fill in ``gpus``, and yield what is to be said of them."""
    import torch

    from lenstrain.training.gpus import BUILDS, refuse_unsupported
    from lenstrain.training.step import choose_amp

    if not torch.cuda.is_available():
        if glob.glob("/dev/nvidia[0-9]*"):
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
            yield judged(
                "gpu", "warn", 0,
                f"There is an NVIDIA GPU, but PyTorch {torch.__version__}, built for {built}, "
                f"cannot use it. Look at nvidia-smi, and install a build for its driver ({BUILDS})."
            )  # fmt: skip
        return
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        try:
            refuse_unsupported(number)
        except ProjectError as error:
            yield judged("gpu", "blocker", number, str(error))
            continue
        with torch.cuda.device(device):
            auto = choose_amp("auto", device)
        known = torch.cuda.get_device_properties(device)
        report["gpus"].append({
            "name": known.name,
            "memory_bytes": known.total_memory,
            "capability": f"{known.major}.{known.minor}",
            "precisions": precisions(device),
            "amp": str(auto).removeprefix("torch."),
        })  # fmt: skip
    if len(report["gpus"]) > 1:
        count = len(report["gpus"])
        yield passed(
            "gpu",
            f"A training takes one GPU; for all {count}: torchrun --standalone --nproc-per-node "
            f"{count} -m lenstrain train ...",
        )


def precisions(device: Any) -> list[str]:
    """What networks can compute in on a device without emulation, as training decides it."""
    from lensprep.errors import ConfigError
    from lenstrain.training.step import check_precision
    from lenstrain.training.validate import Precision, require_precision

    found = []
    for precision in get_args(Precision):
        try:
            if precision == "fp16":  # of older GPUs too: only scoring asks for later ones
                check_precision(precision, device.type)
            else:
                require_precision(precision, device)
        except ConfigError:
            continue
        found.append(precision)
    return found


# ---------------------------------------------------------------------------------------------
# An epoch
# ---------------------------------------------------------------------------------------------


def _look_at_epoch(
    uri: str | None, config: Config, report: dict[str, Any], tell: Tell
) -> Iterator[Finding]:
    """Fill in ``device``, ``dataset`` and ``epoch``, and yield what is to be said of them."""
    from lenstrain.networks.finder import build_model
    from lenstrain.training.distributed import Context, choose_device
    from lenstrain.training.memory import enough_to_train
    from lenstrain.training.pace import measure_pace
    from lenstrain.training.run import build_run, set_backends

    dataset = None
    if uri is not None:
        tell(f"opening {uri}")
        if is_remote(uri) and report["store"] is None:
            report["store"], found = store_report(uri, None, write=False, name=MANIFEST_NAME)
            yield from found
        dataset = Dataset.open(uri)
        report["dataset"] = dataset_facts(dataset)
    context = Context(device=choose_device(config.train.device))
    if context.device.type == "cpu" and report["gpus"]:
        yield judged("device", "warn", "cpu", "There is a GPU, but train.device=cpu.")
    with enough_to_train(config, context.device):
        if dataset is None:
            set_backends(config, context)
            tell("timing steps")
            model = build_model(config.model)
            pace = measure_pace(model, config, DECALS, context.device, seconds=STEPS_S)
            report["device"] = device_facts(pace, config, context.device)
            return
        tell("reading its columns, building the network")
        run = build_run(dataset, uncached(config, dataset.uri), Path(), context, None)
        try:
            tell("timing steps")
            pace = measure_pace(
                run.learner.model, config, dataset.geometry, context.device, seconds=STEPS_S
            )
            report["device"] = device_facts(pace, config, context.device)
            tell("timing the loader")
            rates = {"device": pace.train_stamps_per_s} | supply_rates(run, report)
        finally:
            run.close()
    rows = run.train_loader.selection.epoch_rows
    slowest = min(rates, key=rates.__getitem__)
    supply = min(rate for name, rate in rates.items() if name != "device")
    validated = dataset.split(config.eval.split).rows
    seconds = rows / rates[slowest] + validated / min(pace.score_stamps_per_s, supply)
    report["epoch"] = {
        "train_rows": rows,
        "validation_rows": validated,
        "epochs": config.train.epochs,
        "seconds": seconds,
        "stamps_per_s": rates,
        "bottleneck": slowest,
    }
    yield judge_pace(report["epoch"], context.device.type)


def uncached(config: Config, uri: str) -> Config:
    """The configuration without the cache of an object store, which a doctor must not fill."""
    if config.data.cache_dir is None or not is_remote(uri):
        return config
    # Shuffled over all shards it may need the cache: in blocks it reads as fast as the store is.
    return replace(config, data=replace(config.data, cache_dir=None, shuffle="block"))


def device_facts(pace: Any, config: Config, device: Any) -> dict[str, Any]:
    """What was measured on a device, and what it is."""
    import torch

    from lenstrain.training.step import choose_amp

    gpu = device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name(device) if gpu else "cpu",
        "threads": None if gpu else torch.get_num_threads(),
        "precision": str(choose_amp(config.train.amp, device) or torch.float32)
        .removeprefix("torch."),
        "arch": config.model.arch,
        "batch": pace.batch,
        "steps": pace.steps,
        "train_stamps_per_s": pace.train_stamps_per_s,
        "score_stamps_per_s": pace.score_stamps_per_s,
    }  # fmt: skip


def supply_rates(run: Run, report: dict[str, Any]) -> dict[str, float]:
    """Stamps per second of what supplies the device: the loader, and the disk or the network.

    The disk counts only if the training split does not fit into the memory: otherwise it is read
    once.
    """
    import numpy as np

    from lensprep.store import RemoteStore
    from lenstrain.bench.cold import random_reads
    from lenstrain.bench.loader import loader_rate
    from lenstrain.bench.remote import long_ranges, plain_client_seconds

    found = {"loader": loader_rate(run.train_loader, _LOADER_S)}
    dataset, split = run.dataset, run.dataset.split("train")
    geometry = dataset.geometry
    if isinstance(dataset.store, RemoteStore):
        rows = min(split.rows, _RANGES_ROWS)
        ranges = list(long_ranges(split.shards, rows, geometry.stride))
        plain_client_seconds(dataset.store, ranges)  # connects
        found["network"] = rows / plain_client_seconds(dataset.store, ranges)
    elif split.rows * geometry.stride > (report["machine"]["memory_available_bytes"] or 0):
        paths = [dataset.path(shard.name) for shard in split.shards]
        starts = np.cumsum([0, *(shard.rows for shard in split.shards)])
        found["disk"] = random_reads(paths, starts, _READS_AT_ONCE, _READS_S, geometry)
    return found


_REMEDIES: Final = {
    "network": "Keep the shards on a local disk: data.cache_dir, or `lensprep download`.",
    "disk": "A faster disk (local NVMe) helps, or enough memory for the training split.",
    "loader": "Compare it with its limit: `lenstrain bench loader`.",
}


def judge_pace(epoch: dict[str, Any], kind: str) -> Finding:
    """What limits an epoch, and what to do about it."""
    slowest, rates = epoch["bottleneck"], epoch["stamps_per_s"]
    if slowest != "device":
        share = rates[slowest] / rates["device"]
        return judged(
            "epoch", "warn", slowest,
            f"The {slowest} is the bottleneck: the device could do {1 / share:.1f} times as many "
            f"stamps. {_REMEDIES[slowest]}",
        )  # fmt: skip
    if kind == "cpu" and (whole := epoch["epochs"] * epoch["seconds"]) > _LONG_S:
        return judged(
            "epoch", "warn", whole,
            f"A run of {epoch['epochs']} epochs takes {time_text(whole)} on this CPU. Train on a "
            "GPU, or a small network: --config demo.",
        )  # fmt: skip
    return passed("epoch", "The device is the bottleneck, as it should be.")


# ---------------------------------------------------------------------------------------------
# For people
# ---------------------------------------------------------------------------------------------


def doctor_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of everything in a report but the findings."""
    yield from machine_facts(report)
    for gpu in report["gpus"]:
        yield (
            "gpu",
            f"{gpu['name']}, {size_text(gpu['memory_bytes'])}, compute capability "
            f"{gpu['capability']}; runs {', '.join(gpu['precisions'])}, trains in {gpu['amp']} by "
            "default",
        )
    if device := report["device"]:
        name = device["name"]
        if device["threads"]:
            name = f"this CPU with {device['threads']} threads"
        yield (
            "device",
            f"{device['arch']} in {device['precision']} on {name}: trains "
            f"{device['train_stamps_per_s']:,.0f} stamps/s, scores "
            f"{device['score_stamps_per_s']:,.0f} (measured with {device['batch']} at a "
            "time)",
        )
    if report["dataset"]:
        yield "dataset", source_text(report["dataset"])
    if epoch := report["epoch"]:
        rates = ", ".join(
            f"{name} {rate:,.0f}" for name, rate in sorted(epoch["stamps_per_s"].items())
        )
        yield (
            "epoch",
            f"about {time_text(epoch['seconds'])} for {epoch['train_rows']:,} rows and the "
            f"validation of {epoch['validation_rows']:,}; "
            f"{time_text(epoch['epochs'] * epoch['seconds'])} for {epoch['epochs']}. Stamps/s: "
            f"{rates}; bottleneck: {epoch['bottleneck']}",
        )
