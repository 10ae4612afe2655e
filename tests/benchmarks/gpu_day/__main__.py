"""One visit to a GPU: tests, rates, waits and memory, in nine minutes and one table.

    make gpu-day                                    with .venv, or the python3 at hand
    make gpu-day PY=python3 WHEELS=wheels           a machine without network
    python3 -m tests.benchmarks.gpu_day --dry       tiny sizes on a CPU, to try it

Run it in the root of a checkout. It takes Python 3.11 with torch, torchvision, numpy, numba,
pyarrow, scipy, scikit-learn, matplotlib, tensorboard, jinja2, click, rich, xxhash, threadpoolctl
and pytest; what a machine lacks of the small rest (deflate, webdataset, braceexpand, tomli-w)
comes as wheels in one folder: `pip download --no-deps -d wheels NAME ...` where there is a network.

The parts run one after the other, the most important first, each in a process of its own with its
own limit. A part that fails or takes too long has a line that says so, and the next one begins.
The table is printed last, also if the visit is cut off. OUT/ then has:

    table.txt       what was printed
    figures.json    the numbers that the goals are held against
    <part>.log      everything that a part said; kernels-*.txt are tables of torch's profiler
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.benchmarks.gpu_day.goals import goal_lines
from tests.benchmarks.gpu_day.table import Table
from tests.benchmarks.gpu_day.visit import Visit

BENCH_ENDS = 310.0
"""Seconds after the start by which `lenstrain bench train` leaves the rest of its cases."""
WORK_BYTES = 9 << 30
"""Free memory below which the dataset and the run go to a disk."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_day", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_day"), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=535.0, help="limit of the whole visit")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on a CPU if need be")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the table is still printed
    table = Table.begin(options.out.resolve())
    with tempfile.TemporaryDirectory(prefix="gpu_day.", dir=_fast_folder()) as work:
        visit = Visit(table, Path(work), options.seconds, dry=options.dry)
        if options.dry:
            visit.say("dry: tiny sizes that measure nothing, to see that every part runs")
        if options.wheels is not None:
            visit.install(options.wheels.resolve())
        if not visit.part("machine", 60):
            return 1
        try:
            make_visit(visit)
        finally:
            for line in goal_lines(table.figures()):
                table.say(line)
            print(f"\n==== the table, after {visit.spent():.0f} s ====\n{table.text()}", flush=True)
    return 0


def make_visit(visit: Visit) -> None:
    """All parts, in their order."""
    dry = visit.dry
    with visit.beside("dataset", 90, "stamps"):
        gpu_tests(visit)
    visit.part("ceilings", 40)
    visit.part("bench", 240, "--until", str(visit.at(BENCH_ENDS)))
    visit.part("scoring", 55)
    visit.part("waits", 70)
    run = visit.work / "run"
    tiny = ["model.arch=resnet_small", "model.width=8", "model.crop=16", "train.compile=false",
            "train.amp=auto", "data.batch_size=16", "eval.batch_size=16"]  # fmt: skip
    sized = tiny if dry else ["data.batch_size=1024"]
    settings = [*sized, "train.epochs=2", "train.log_every=4", "data.memory_budget_gb=6"]
    options = [word for setting in settings for word in ("--set", setting)]
    command = ["--config", "configs/h100.toml", "--out", str(run), *options]
    if visit.lenstrain("train", 90, "train", visit.dataset, *command):
        visit.part("trained", 15)
    best, scores = run / "checkpoints" / "best.pt", visit.work / "scores.parquet"
    visit.lenstrain("infer", 30, "infer", best, visit.dataset, "--out", scores)
    visit.part("rates", 60)
    visit.part("loaders", 35)
    read_loader(visit)
    visit.part("trials", 30)


def read_loader(visit: Visit) -> None:
    """`lenstrain bench loader`, on data in memory and on data that is not."""
    size = ["--batch-size", "16", "--seconds", "2"] if visit.dry else ["--batch-size", "1024"]
    options = [*size, "--memory-budget", "6"]
    bench = ("bench", "loader")
    if visit.lenstrain("loader", 40, *bench, visit.dataset, *options, "--consumer-rate", "25000"):
        visit.say(one_line(visit.log("loader")))
    # On the disk of OUT: what is in memory as the rest of the visit is cannot be made cold.
    with tempfile.TemporaryDirectory(prefix="cold.", dir=visit.table.folder) as disk:
        made = visit.command("stamps", "--work", disk, "--shards", "4")
        read = (*bench, Path(disk) / "dataset", *options, "--cold")
        if visit.run("cold_dataset", 45, made) and visit.lenstrain("cold", 40, *read):
            visit.say(f"cold: {one_line(visit.log('cold'))}")


def gpu_tests(visit: Visit) -> None:
    """`make test-gpu`, five tests at a time where pytest-xdist is installed."""
    several = [] if visit.dry or not visit.has("xdist") else ["-n", "5"]
    limit = ["--timeout", "150"] if visit.has("pytest_timeout") else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "--durations", "6",
               "-W", "default", "-p", "no:cacheprovider", *several, *limit]  # fmt: skip
    visit.run("tests", 170, command)
    text = visit.log("tests").read_text(errors="replace")
    lines = text.splitlines() or ["nothing said"]
    visit.say(f"tests: {lines[-1].strip('= ')}")
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            visit.say(f"  {line[:170]}")
    # Let through here, as a visit is short: elsewhere these are errors, but for those of torch.
    for warning, times in Counter(re.findall(r"\w+Warning: .{1,70}", text)).most_common(3):
        visit.say(f"  {times} times {warning}")


def one_line(log: Path) -> str:
    """What a command said, without the columns."""
    return "; ".join(" ".join(line.split()) for line in log.read_text().splitlines())


def _fast_folder() -> str | None:
    """Memory, where there is enough of it: the visit is to measure no disk."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return None
    facts = os.statvfs(shared)
    return str(shared) if facts.f_bavail * facts.f_frsize > WORK_BYTES else None


if __name__ == "__main__":
    sys.exit(main())
