"""Watch until the runs are over: read, draw, wait; nothing is written anywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from lensprep.dataset.absence import no_run
from lensprep.errors import StorageError
from lenstrain.monitor.snapshot import OVER, Snapshot, expand, may_be_run, read_snapshot
from lenstrain.monitor.view import screen


def read_all(runs: Sequence[str], *, to_come: bool = False) -> list[Snapshot]:
    """Snapshots of all runs; a folder of runs gives those in it.

    Parameters
    ----------
    runs : sequence of str
    to_come : bool
        Whether a run need not exist yet.

    Raises
    ------
    StorageError
        If one is neither a run nor may become one.
    """
    found = expand(runs)
    for run in found:
        if not may_be_run(run, to_come):
            raise StorageError(no_run(run))
    return [read_snapshot(run) for run in found]


def show(snapshots: Sequence[Snapshot]) -> None:
    """Draw the runs once, on standard error."""
    Console(stderr=True).print(screen(snapshots))


def watch(runs: Sequence[str], seconds: float) -> list[Snapshot]:
    """Redraw the runs until all are over; they need not have begun."""
    snapshots = read_all(runs, to_come=True)
    console = Console(stderr=True)
    with Live(screen(snapshots), console=console, auto_refresh=False) as live:
        while not all(snapshot.status in OVER for snapshot in snapshots):
            time.sleep(seconds)
            snapshots = read_all(runs, to_come=True)
            live.update(screen(snapshots), refresh=True)
    return snapshots
