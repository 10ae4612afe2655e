"""The parts of a visit that measure something themselves, each a process of its own.

python -m tests.benchmarks.gpu_day.parts NAME --work DIR --out DIR [--dry] [--until TIME]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from typing import Any

import numba
import numpy as np
import torch

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lensprep.errors import ConfigError
from lenstrain.config import Config
from lenstrain.data import StampLoader
from lenstrain.networks.finder import build_model
from lenstrain.scoring.infer import infer
from lenstrain.training.validate import full_float32
from tests.benchmarks.gpu_day.place import Place
from tests.benchmarks.gpu_day.steps import GIB, GPU, MIB, bench, calls_per_s, trials, waits

DEVICE = "cuda" if GPU else "cpu"


def machine(place: Place) -> None:
    """What the figures belong to."""
    if not (GPU or place.dry):
        raise SystemExit("Error: PyTorch finds no GPU. --dry (DRY=1) tries the visit on a CPU.")
    gpu = torch.cuda.get_device_name() if GPU else "no GPU"
    cudnn = torch.backends.cudnn.version() if GPU else None
    place.table.say(
        f"{gpu}, {os.cpu_count()} cores, python {platform.python_version()}, torch "
        f"{torch.__version__}, cuda {torch.version.cuda}, cudnn {cudnn}, "
        f"numpy {np.__version__}, numba {numba.__version__}"
    )


def ceilings(place: Place) -> None:
    """What the card does at best. Constant data is no measure: products of it run faster."""
    side, size = (8192, 2 * GIB) if GPU else (256, 4 * MIB)
    for name, make in (("random numbers", torch.randn), ("ones", torch.ones)):
        a, b = (make((side, side), device=DEVICE).bfloat16() for _ in range(2))
        rate = calls_per_s(functools.partial(torch.mm, a, b), 20)
        place.table.say(f"ceiling: bf16 product of {name} {2 * side**3 * rate / 1e12:.0f} TFLOP/s")
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    rate = calls_per_s(lambda: target.copy_(source), 20)
    place.table.say(f"ceiling: copy on the device {2 * size * rate / 1e12:.2f} TB/s")
    host, part = torch.empty(size // 8, dtype=torch.uint8, pin_memory=GPU), target[: size // 8]
    rate = calls_per_s(lambda: part.copy_(host, non_blocking=True), 10)
    place.table.say(f"ceiling: pinned memory to the device {size / 8 * rate / 1e9:.1f} GB/s")


def scoring(place: Place) -> None:
    """Forward passes of ResNet18 as validation and `infer` make them, and as they could."""
    rows, turns = (2048, 12) if GPU else (4, 1)
    first, last = torch.contiguous_format, torch.channels_last
    bf16 = torch.bfloat16
    # Name, layout, precision of autocast, TF32, whether cuDNN tries its kernels, compiled.
    cases = (
        ("float32 nchw", first, None, False, True, False),
        ("float32 nhwc, untuned", last, None, False, False, False),
        ("float32 nhwc", last, None, False, True, False),
        ("tf32 nhwc", last, None, True, True, False),
        ("bf16 nhwc", last, bf16, True, True, False),
        ("bf16 nhwc, compiled", last, bf16, True, True, True),
    )
    stamps = torch.randn(rows, 3, 64, 64, device=DEVICE)
    model = build_model(load_config(Config, None, []).model).to(DEVICE).eval()
    for name, layout, amp, tf32, tuned, compiled in cases:
        if compiled and place.dry:
            continue
        torch.backends.cudnn.benchmark = tuned
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        stamps, model = stamps.contiguous(memory_format=layout), model.to(memory_format=layout)
        network: Any = torch.compile(model, dynamic=False) if compiled else model
        autocast = torch.autocast(DEVICE, amp, enabled=amp is not None)
        with torch.inference_mode(), autocast, nullcontext() if tf32 else full_float32():
            rate = calls_per_s(functools.partial(network, stamps), turns) * rows
        place.table.say(f"scoring {name}: {rate:,.0f} stamps/s")


def trained(place: Place) -> None:
    """What `lenstrain train` has written: the second half of its lines, and its last epoch."""
    log = (place.work / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    epoch = [line for line in lines if line["kind"] == "epoch"][-1]
    intervals = [line for line in lines if line["kind"] == "interval"]
    late = intervals[len(intervals) // 2 :]
    rate, wait = (
        statistics.median(line[name] for line in late)
        for name in ("samples_per_s", "data_wait_share")
    )
    data = Dataset.open(place.dataset)
    steps_s, validation_s = data.split("train").rows / rate, epoch["validation_seconds"]
    share = 100 * validation_s / (steps_s + validation_s)
    place.table.record(data_wait_percent=100 * wait, validation_percent=share)
    place.table.say(
        f"lenstrain train: {rate:,.0f} stamps/s, waits {100 * wait:.2f} % for data, "
        f"{late[-1].get('gpu_memory_gib', 0):.1f} GiB; validation {validation_s:.1f} s for "
        f"{data.split('val').rows:,} stamps, {share:.1f} % of an epoch; auroc {epoch['auroc']:.4f}"
    )


def rates(place: Place) -> None:
    """`infer` in each precision: what the rows of train take longer than those of val.

    So that opening the checkpoint and choosing kernels does not count, as it hardly does for a
    survey.
    """
    best, out = place.work / "run" / "checkpoints" / "best.pt", place.work / "rates.parquet"
    for precision in ("bf16", "tf32", "float32"):
        options: dict[str, Any] = {"batch_size": place.batch, "memory_budget_gb": 6.0}
        options["precision"] = precision

        def score(split: str, options: dict[str, Any] = options) -> dict[str, Any]:
            return infer(best, place.dataset, split=split, out=out, **options)

        try:
            score("val")  # warms up
        except ConfigError as error:  # a CPU, or an old GPU, has not all of them
            place.table.say(f"infer {precision}: {error}")
            continue
        few, many = score("val"), score("train")
        rows, seconds = (many[name] - few[name] for name in ("rows", "seconds"))
        # In a dry visit so few rows may take no longer.
        rate = rows / max(seconds, 1e-3)
        place.table.record(**{f"infer_{precision}_stamps_per_s": rate})
        place.table.say(
            f"infer {precision}: {rate:,.0f} stamps/s; {many['rows']:,} rows in "
            f"{many['seconds']:.1f} s as a whole"
        )


def loaders(place: Place) -> None:
    """The loader into pinned memory, and as many ranks at once as a node has GPUs, and more."""
    if GPU:
        rate = drained(place.dataset, place.batch, 0, 1, 3.0, True)
        place.table.say(f"loader, one rank into pinned memory: {rate:,.0f} stamps/s")
    for ranks in (2,) if place.dry else (8, 14):
        with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
            waiting = [
                pool.submit(drained, place.dataset, place.batch // 2, rank, ranks,
                            1.0 if place.dry else 3.0, False)
                for rank in range(ranks)
            ]  # fmt: skip
            found = [each.result() for each in waiting]
        place.table.say(
            f"loader, {ranks} ranks at once: {sum(found):,.0f} stamps/s, the slowest "
            f"{min(found):,.0f}"
        )


def drained(
    uri: str, batch_size: int, rank: int, ranks: int, seconds: float, pinned: bool
) -> float:
    """Stamps a second of one rank that takes batches as fast as they come."""
    loader = StampLoader(uri, "train", batch_size, rank=rank, world_size=ranks, pin_memory=pinned)
    next(iter(loader))  # its kernels are loaded
    rows, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        rows += sum(len(batch.index) for batch in loader)
    spent = time.perf_counter() - started
    loader.close()
    return rows / spent


PARTS = (machine, ceilings, bench, scoring, waits, trained, rates, loaders, trials)


def main() -> None:
    parts = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=parts)
    given, place = Place.parse(parser)
    parts[given.name](place)


if __name__ == "__main__":
    main()
