"""Training steps: their rate in many settings, what waits in them, and which kernels take long."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lenstrain.bench.train import PHASES, run_train_bench
from lenstrain.config import Config
from lenstrain.networks.finder import build_model
from lenstrain.training.distributed import process_group
from lenstrain.training.resume import save
from lenstrain.training.run import Run, build_run
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import train_epoch, validate
from tests.benchmarks.gpu_day.place import Place
from tests.gpu.device import waits_counted

GPU = torch.cuda.is_available()
GIB, MIB = 2**30, 2**20
TINY = ("model.arch=resnet_small", "model.width=8", "model.crop=16")
EAGER = "eager"
# Batch, precision, mode of torch.compile, channels last: the most important first.
CASES = (
    (1024, "bf16", EAGER, True),
    (1024, "bf16", "default", True),
    (256, "bf16", EAGER, True),
    (4096, "bf16", EAGER, True),
    (4096, "bf16", "default", True),
    (256, "bf16", "default", True),
    (1024, "bf16", EAGER, False),
    (256, "bf16", "reduce-overhead", True),
    (1024, "fp16", EAGER, True),
    (1024, "off", EAGER, True),
    (1024, "bf16", "default", False),
    (1024, "bf16", "max-autotune-no-cudagraphs", True),
)
HEADER = (
    "batch amp  compile                    layout  stamps/s wait% idle%  fwd/bwd/opt/other% "
    "TFLOP/s of product  peak GiB start s"
)


def configured(place: Place, *overrides: str) -> Config:
    """ResNet18 with averaged weights; a tiny network in a dry visit."""
    options = ("model.arch=resnet18", "optim.ema_decay=0.999", "data.memory_budget_gb=6")
    return load_config(Config, None, [*options, *(TINY if place.dry else ()), *overrides])


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def bench(place: Place) -> None:
    """`lenstrain bench train`, case by case."""
    place.table.say(HEADER)
    best: dict[str, float] = {}
    for batch, amp, mode, last in CASES[:2] if place.dry else CASES:
        if time.time() > place.until:
            place.table.say("bench: no time left for the rest")
            return
        size = place.batch if place.dry else batch
        overrides = (
            f"data.batch_size={size}", f"eval.batch_size={size}", f"train.amp={amp}",
            f"train.compile={str(mode != EAGER).lower()}",
            f"train.channels_last={str(last).lower()}",
        )  # fmt: skip
        seconds, started = 1.0 if place.dry else 5.0, time.time()
        fresh_memory()
        try:
            with compile_mode(mode, dry=place.dry):
                found = run_train_bench(
                    place.dataset, configured(place, *overrides), seconds=seconds
                )
        except Exception as error:  # whatever it is, the next case may work
            first = (str(error).splitlines() or [""])[0]
            place.table.say(f"{size:5} {amp:4} {mode}: {type(error).__name__} {first[:120]}")
            continue
        start_s = time.time() - started - seconds
        place.table.say(case_line(size, amp, mode, last, found, start_s))
        if amp == "bf16":
            name = "eager_stamps_per_s" if mode == EAGER else "compiled_stamps_per_s"
            best[name] = max(best.get(name, 0.0), found["samples_per_s"])
            place.table.record(**best)


def case_line(
    batch: int, amp: str, mode: str, last: bool, found: dict[str, Any], start_s: float
) -> str:
    """One row below `HEADER`."""
    shares = "/".join(f"{100 * found[f'{name}_share']:.0f}" for name in (*PHASES, "other"))
    return (
        f"{batch:5} {amp:4} {mode:26} {'nhwc' if last else 'nchw'} {found['samples_per_s']:11,.0f} "
        f"{100 * found['data_wait_share']:5.1f} {100 * found['idle_share']:5.1f}  {shares:18} "
        f"{found['achieved_flops_per_s'] / 1e12:7.1f} {100 * found['of_matmul']:9.0f}% "
        f"{found['gpu_memory_gib'] or 0:9.1f} {start_s:7.0f}"
    )


def fresh_memory() -> None:
    """As at the start of a process: nothing compiled, nothing kept."""
    torch._dynamo.reset()
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def compile_mode(mode: str, *, dry: bool) -> Any:
    """Compile networks in a mode for which there is no setting, as only this bench tries them."""
    real = torch.compile

    def compile(model: Any, **options: Any) -> Any:
        return model if dry else real(model, **{**options, "dynamic": False, "mode": mode})

    return mock.patch.object(torch, "compile", compile)


def trials(place: Place) -> None:
    """What might be worth a setting: padded input channels; and what a checkpoint costs."""
    rows, turns = (1024, 20) if GPU else (4, 1)
    device = torch.device("cuda" if GPU else "cpu")
    for channels in (3, 4, 8):
        model = build_model(configured(place).model)
        first = model.backbone.conv1
        model.backbone.conv1 = torch.nn.Conv2d(
            channels, first.out_channels, first.kernel_size, padding=first.padding, bias=False
        )
        model = model.to(device, memory_format=torch.channels_last)
        stamps = torch.randn(rows, channels, 64, 64, device=device)
        stamps = stamps.contiguous(memory_format=torch.channels_last)

        def step(model: Any = model, stamps: Any = stamps) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(stamps).sum()
            loss.backward()

        rate = calls_per_s(step, turns) * rows
        place.table.say(f"forward and backward, {channels} input channels: {rate:,.0f} stamps/s")
    with process_group("auto", 5.0) as context:
        folder = place.work / "trials"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        sizes = (f"data.batch_size={place.batch}", f"data.limit={2 * place.batch}",
                 f"eval.batch_size={place.batch}")  # fmt: skip
        dataset, config = Dataset.open(place.dataset), configured(place, *sizes)
        run = build_run(dataset, config, folder, context, None)
        try:
            train_epoch(run, StopSignals())
            synchronize()
            started = time.perf_counter()
            save(run, [])
            seconds = time.perf_counter() - started
        finally:
            run.close()
    place.table.say(f"a checkpoint keeps the steps waiting for {seconds:.2f} s")


def calls_per_s(call: Callable[[], Any], turns: int) -> float:
    """Calls a second once the first three have warmed up."""
    for _ in range(3):
        call()
    synchronize()
    started = time.perf_counter()
    for _ in range(turns):
        call()
    synchronize()
    return turns / (time.perf_counter() - started)


def waits(place: Place) -> None:
    """Where the host waits, what memory stays in use, and which kernels take the time."""
    rows = 20 * place.batch
    sizes = (f"data.batch_size={place.batch}", f"eval.batch_size={place.batch}")
    found_waits, found_growth = 0, 0.0
    for compiled in ("false",) if place.dry else ("false", "true"):
        options = (*sizes, f"data.limit={rows}", "train.log_every=1000",
                   f"train.compile={compiled}")  # fmt: skip
        with process_group("auto", 5.0) as context:
            dataset, config = Dataset.open(place.dataset), configured(place, *options)
            run = build_run(dataset, config, place.work / "none", context, None)
            try:
                counts, used = watch_epochs(run)
                val_waits = count_waits(lambda run=run: validate(run, StopSignals()))
                found_waits = max(found_waits, counts[-1])
                found_growth = max(found_growth, used[-1] - used[2])
                place.table.say(
                    f"compile={compiled}: waits in epochs of {len(run.train_loader)} steps "
                    f"{counts}, in a validation of {len(run.val_loader)} batches {val_waits}; "
                    f"peak MiB of each epoch {[round(each) for each in used]}, "
                    f"{reserved_gib():.2f} GiB reserved"
                )
                kernels(run, place, compiled)
            finally:
                run.close()
    if GPU:
        place.table.record(waits_in_steps=found_waits, memory_growth_mib=found_growth)


def watch_epochs(run: Run) -> tuple[list[int], list[float]]:
    """Waits in each of six epochs, and the peak of memory in use, MiB; the first two warm up."""
    counts, used = [], []
    for _ in range(6):
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        counts.append(count_waits(lambda: train_epoch(run, StopSignals())))
        run.epochs_done += 1
        synchronize()
        used.append(torch.cuda.max_memory_allocated() / MIB if GPU else 0.0)
    return counts, used


def count_waits(work: Callable[[], Any]) -> int:
    """How often the host waits for the device; always 0 on a CPU."""
    with waits_counted() if GPU else nullcontext([]) as waits:
        work()
    return len(waits)


def reserved_gib() -> float:
    return torch.cuda.memory_reserved() / GIB if GPU else 0.0


def kernels(run: Run, place: Place, compiled: str) -> None:
    """The kernels that take most of an epoch's steps; all of them in a file."""
    with torch.profiler.profile() as profile:
        train_epoch(run, StopSignals())
        synchronize()
    averages = profile.key_averages()
    text = averages.table(sort_by="self_device_time_total", row_limit=50)
    (place.table.folder / f"kernels-compile-{compiled}.txt").write_text(text)
    # Those of the host carry the time of the kernels that they start, which would count twice.
    timed = [event for event in averages if str(event.device_type).endswith("CUDA")]
    total = sum(event.self_device_time_total for event in timed)
    for event in sorted(timed, key=lambda event: -event.self_device_time_total)[:7]:
        share, each = (
            100 * event.self_device_time_total / total,
            event.count / len(run.train_loader),
        )
        place.table.say(f"  {share:5.1f} % {each:5.1f} a step  {event.key[:85]}")
