"""Watch until the runs are over: read, draw, wait; nothing is written anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console, RenderableType
from rich.live import Live

from lensprep.dataset.absence import no_run
from lensprep.errors import StorageError
from lensprep.terminal import Shown, can_draw, print_rich
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
    """Print the runs once."""
    print_rich(screen(snapshots))


def watch(runs: Sequence[str], seconds: float) -> list[Snapshot]:
    """Redraw the runs until all are over; they need not have begun.

    Where there is no terminal to draw on, they are printed once, at the end.
    """
    snapshots = read_all(runs, to_come=True)
    console = Console()
    draws = can_draw(sys.stdout)
    live = Live(fitted(snapshots, console), console=console, auto_refresh=False)
    with live if draws else nullcontext():
        while not all(snapshot.status in OVER for snapshot in snapshots):
            time.sleep(seconds)
            snapshots = read_all(runs, to_come=True)
            if draws:
                live.update(fitted(snapshots, console), refresh=True)
    if not draws:
        show(snapshots)
    return snapshots


def fitted(snapshots: Sequence[Snapshot], console: Console) -> RenderableType:
    """The runs as they fit on a screen, which would cut off what is below it."""
    whole = screen(snapshots)
    if len(console.render_lines(whole)) >= console.height:
        whole = screen(snapshots, console.height - 1)
    return Shown(whole)
