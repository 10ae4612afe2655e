"""Helpers for the tasks of both rounds: the memory of their process, and names for messages."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[str, int, int], None]
"""Called with a phase, such as "decode" or "shards", the amount done and the total."""


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch off garbage collection: a task makes no cycles, and it would take 3 % of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def peak_rss_bytes() -> int:
    """Largest resident memory that this process has had so far, bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Not Linux. There `ru_maxrss` would be too high: a new process inherits its parent's.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def first_and_last(numbers: Sequence[int]) -> list[int]:
    """First and last of some numbers; only one if they are equal."""
    return sorted({numbers[0], numbers[-1]})
