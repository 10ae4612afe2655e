"""Time other loaders and ours on the same stamps in one run, and print the table of the docs.

    make bench-peers
    python -m tests.benchmarks.peers [--rows 8192] [--rounds 5] [--folder DIR] [--json]

Everything runs on one core: the process is pinned to it and so is every thread it starts. All
readers deliver shuffled batches of 256 stamps, float16, with their labels. Before anything is
timed, each has read one whole epoch, whose stamps are compared with those that were written, one
by one: that also brings its files into the page cache, and compiles what it compiles. Then they
take turns: in each round every reader reads whole epochs for at least `--seconds`, and the median
of the rounds is what counts. Nothing is known in advance to a reader but its own files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.readers import Reader
    from tests.benchmarks.stamps import Stamps

ROWS, ROUNDS, SECONDS = 8192, 5, 1.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def pin() -> None:
    """One core and one thread, before NumPy, torch and numba start theirs."""
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def compare(
    stamps: Stamps, *, rounds: int, seconds: float, kinds: tuple[type[Reader], ...], tell: Any
) -> list[dict[str, Any]]:
    """Check and time readers in interleaved rounds; one table row for each, also those left out."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        readers = []
        for kind in kinds:
            tell(f"preparing {kind.__name__}")
            row: dict[str, Any] = {"title": kind.title, "rates": [], "left_out": None}
            rows.append(row)
            try:
                reader = _prepared(kind, stamps)
            except ImportError as error:
                row["left_out"] = f"not installed: {str(error).splitlines()[0]}"
                continue
            stack.callback(reader.close)
            if kind.package is not None:
                row["version"] = version(kind.package)
            readers.append((reader, row))
            check(reader)
        for number in range(rounds):
            for reader, row in readers:
                tell(f"round {number + 1} of {rounds}: {type(reader).__name__}")
                row["rates"].append(rate(reader, seconds))
    return rows


def _prepared(kind: type[Reader], stamps: Stamps) -> Reader:
    """A reader whose own files are there."""
    reader = kind(stamps)
    if not reader.folder.exists():
        reader.write()
    return reader


def check(reader: Reader) -> None:
    """Read one epoch: every stamp once, with its label, bit for bit; SystemExit if not."""
    stored = _digests(reader.stamps.pixels, reader.stamps.labels)
    expected = sorted(stored)
    found: list[tuple[int, int]] = []
    for pixels, labels in reader.epoch():
        if str(pixels.dtype) != "torch.float16" or pixels.shape[1:] != (3, 64, 64):
            raise SystemExit(f"{reader.title}: gives {pixels.dtype} {tuple(pixels.shape)}")
        found += _digests(pixels.numpy(), labels.numpy())
    if found == stored:
        raise SystemExit(f"{reader.title}: the stamps come as they are stored, not shuffled")
    if sorted(found) != expected:
        lost = len(set(expected) - set(found))
        raise SystemExit(
            f"{reader.title}: {len(found)} stamps came of {len(expected)}, {lost} are missing or "
            "altered; what does not deliver the stamps is not timed"
        )


def _digests(pixels: Any, labels: Any) -> list[tuple[int, int]]:
    from zlib import crc32

    return [
        (crc32(stamp.tobytes()), int(label)) for stamp, label in zip(pixels, labels, strict=True)
    ]


def rate(reader: Reader, seconds: float) -> float:
    """Stamps per second over whole epochs."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for pixels, labels in reader.epoch():
            count += len(labels)
            del pixels  # a consumer that goes on to the next batch lets go of this one
    return count / spent


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines, fastest last as they were given."""
    medians = {row["title"]: statistics.median(row["rates"]) for row in rows if row["rates"]}
    stock = next((rate for title, rate in medians.items() if "stock" in title), None)
    lines = [
        "| Reader | Version | stamps/s | range | times stock webdataset |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        title, name = row["title"], row.get("version", "")
        if row["left_out"] is not None:
            lines.append(f"| {title} | {name} | left out: {row['left_out']} | | |")
        elif row["rates"]:
            low, high, median = min(row["rates"]), max(row["rates"]), medians[title]
            times = f"{median / stock:,.1f}" if stock else ""
            lines.append(f"| {title} | {name} | {median:,.0f} | {low:,.0f}–{high:,.0f} | {times} |")
    return lines


def machine() -> str:
    """What the figures hold for."""
    import platform

    names = []
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in text if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    return (
        f"one of {os.cpu_count()} cores of {processor}, {system}, "
        f"Python {platform.python_version()}, NumPy {version('numpy')}, torch {version('torch')}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=ROWS, help="stamps, a multiple of 256")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="0: only write and check")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="least time of a turn")
    parser.add_argument("--folder", type=Path, help="where the stamps are kept for the next run")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="classes of readers.py")
    parser.add_argument("--json", action="store_true", help="every round, instead of the table")
    options = parser.parse_args(arguments)
    if options.rows < 256 or options.rows % 256:
        parser.error("--rows must be a multiple of 256: then no reader has to fill a batch")
    pin()
    # One of them makes tensors of read-only arrays, which torch remarks upon.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    from tests.benchmarks.readers import READERS
    from tests.benchmarks.stamps import make_stamps

    names = {kind.__name__: kind for kind in READERS}
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    kinds = tuple(kind for name, kind in names.items() if name in (options.only or names))

    def tell(what: str) -> None:
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="lenstrain-peers-") as temporary:
        tell("making the stamps")
        stamps = make_stamps(options.folder or Path(temporary), options.rows)
        rows = compare(
            stamps, rounds=options.rounds, seconds=options.seconds, kinds=kinds, tell=tell
        )
    tell("")
    heading = (
        f"{options.rows:,} stamps ({stamps.source}), batches of 256, page cache warm; medians of "
        f"{options.rounds} interleaved rounds; {machine()}."
    )
    if options.json:
        print(json.dumps({"conditions": heading, "readers": rows}, indent=2))
    else:
        print("\n".join([heading, "", *table(rows)]))


if __name__ == "__main__":
    main()
