"""Watching until the runs are over: reads, draws, waits; nothing is written anywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from lenstrain.monitor.snapshot import OVER, Snapshot, expand, read_snapshot
from lenstrain.monitor.view import screen


def read_all(runs: Sequence[str]) -> list[Snapshot]:
    """Snapshots of all runs; a folder of runs gives those in it."""
    return [read_snapshot(run) for run in expand(runs)]


def show(snapshots: Sequence[Snapshot]) -> None:
    """Draw the runs once, on standard error."""
    Console(stderr=True).print(screen(snapshots))


def watch(runs: Sequence[str], seconds: float) -> list[Snapshot]:
    """Draw the runs again and again until all are over; returns the last snapshots."""
    snapshots = read_all(runs)
    console = Console(stderr=True)
    with Live(screen(snapshots), console=console, auto_refresh=False) as live:
        while not all(snapshot.status in OVER for snapshot in snapshots):
            time.sleep(seconds)
            snapshots = read_all(runs)
            live.update(screen(snapshots), refresh=True)
    return snapshots
