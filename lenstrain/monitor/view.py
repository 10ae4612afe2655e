"""The screen: a panel for each run, with its numbers, their course, and what they mean.

Runs that are too many for that are lines of a table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lensprep.errors import count_text, time_text
from lensprep.texttable import UNLIMITED, TextTable
from lenstrain.evaluation.metrics import higher_is_better, watched
from lenstrain.monitor.diagnosis import since_best, values
from lenstrain.monitor.snapshot import OVER, Snapshot

BLOCKS = "▁▂▃▄▅▆▇█"
COURSE_WIDTH = 36
MOST_PANELS = 4
"""Runs that are shown with all that is known of them."""
COLOURS = {"good": "green", "info": "cyan", "warn": "yellow", "bad": "red"}
STATUS_COLOURS = {
    "running": "green",
    "starting": "cyan",
    "finished": "bold green",
    "stopped": "bold green",
    "not started": "cyan",
    "interrupted": "yellow",
    "silent": "yellow",
    "crashed": "bold red",
}


def screen(snapshots: Sequence[Snapshot], rows: int | None = None) -> RenderableType:
    """All runs: a few one below the other, many as a table.

    Parameters
    ----------
    snapshots : sequence of Snapshot
    rows : int, optional
        Lines that there is room for: if given, there is a table, with as many runs as fit.
    """
    if rows is None and len(snapshots) <= MOST_PANELS:
        return Group(*(RunPanel(snapshot) for snapshot in snapshots))
    return overview(snapshots, rows)


def overview(snapshots: Sequence[Snapshot], rows: int | None = None) -> RenderableType:
    """A line for each run, and how many are in which state; of `rows` lines in all, if given."""
    states = Counter(snapshot.status for snapshot in snapshots)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    lines: list[RenderableType] = [Text(f"{count_text(len(snapshots), 'run')}: {counts}")]
    shown = list(snapshots)
    if rows is not None and len(shown) > (room := max(rows - 4, 1)):
        # Those that still change come first, then those that failed; all keep their order.
        first = sorted(range(len(shown)), key=lambda place: _ended(shown[place]))[:room]
        shown = [shown[place] for place in sorted(first)]
        left = count_text(len(snapshots) - room, "run")
        lines.append(Text(f"(no room for {left}; without --watch all are shown)", "dim"))
    table = TextTable(
        "run", "status", "epoch", "metric", "best", "now", "stamps/s", "finding",
        left=("status", "metric", "finding"), spare=("stamps/s", "now", "metric", "epoch"),
    )  # fmt: skip
    for snapshot, name in zip(shown, _short_names([one.run for one in shown]), strict=True):
        table.add(name, *_overview_cells(snapshot))
    return Group(table, *lines)


def _ended(snapshot: Snapshot) -> int:
    """How little there is to see: 0 while it changes, 1 if it ended otherwise than planned, 2."""
    return (snapshot.status in OVER) + (snapshot.status in ("finished", "stopped"))


def _short_names(runs: Sequence[str]) -> list[str]:
    """Names of runs, without their folder if all are in the same."""
    parents = {run.rpartition("/")[0] for run in runs}
    return [run.rpartition("/")[2] for run in runs] if len(parents) == 1 else list(runs)


def _overview_cells(snapshot: Snapshot) -> list[str | Text]:
    monitor = snapshot.config.train.monitor
    course = values(snapshot.history.epochs, monitor)
    rates = values(snapshot.history.intervals, "samples_per_s")
    pick = max if higher_is_better(monitor) else min
    finding = next(iter(snapshot.diagnoses), None)
    return [
        Text(snapshot.status, STATUS_COLOURS[snapshot.status]),
        f"{len(snapshot.history.epochs)} of {snapshot.config.train.epochs}",
        monitor,
        f"{pick(course):.4f}" if course else "",
        f"{course[-1]:.4f}" if course else "",
        f"{rates[-1]:,.0f}" if rates else "",
        Text(finding.name, COLOURS[finding.severity]) if finding else "",
    ]


class RunPanel:
    """One run, in a box where the width is limited."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        snapshot = self.snapshot
        title = Text(snapshot.status, STATUS_COLOURS[snapshot.status])
        run = Text(snapshot.run, "bold", overflow="fold")
        parts: list[RenderableType] = [header(snapshot)]
        if snapshot.history.intervals or snapshot.history.epochs:
            parts += [Text(), numbers(snapshot)]
        if snapshot.diagnoses:
            parts += [Text(), findings(snapshot)]
        if title.cell_len + run.cell_len + 8 <= options.max_width:
            title = Text.assemble(title, "  ", run)
        else:
            parts.insert(0, run)  # the box would cut it
        if options.max_width < UNLIMITED:
            yield Panel(Group(*parts), title=title, title_align="left", border_style="dim")
        else:
            yield from (title, *parts, Text())


def header(snapshot: Snapshot) -> RenderableType:
    """State, model and device, and how far the run is."""
    if snapshot.status == "not started":
        return Text(snapshot.detail)
    config = snapshot.config
    facts = (config.model.arch, f"batch {config.data.batch_size}", snapshot.device)
    what = "  " + ", ".join(filter(None, facts))
    lines: list[RenderableType] = [Text.assemble(snapshot.detail, (what, "dim"))]
    if snapshot.steps:
        row = Table.grid(padding=(0, 2))
        done = Text(
            f"{100 * snapshot.step / snapshot.steps:.0f} %  "
            f"epoch {len(snapshot.history.epochs)} of {config.train.epochs} done  "
            f"step {snapshot.step:,} of {snapshot.steps:,}  "
        )
        if (left := snapshot.seconds_left) is not None:
            done.append(f"at most {time_text(left)} left", "bold")
        row.add_row(ProgressBar(total=snapshot.steps, completed=snapshot.step, width=20), done)
        lines.append(row)
    return Group(*lines)


def numbers(snapshot: Snapshot) -> TextTable:
    """Each number: its latest value, its best, and its course from the start."""
    table = TextTable(
        "metric", "now", "best", "course", left=("best",), prose="course", spare=("course",)
    )
    intervals, epochs = snapshot.history.intervals, snapshot.history.epochs
    monitor = snapshot.config.train.monitor
    _row(table, "training loss", values(intervals, "loss"), "{:.4f}", "lowest", min)
    for name in dict.fromkeys((monitor, *watched())):
        course = values(epochs, name)
        if not course:
            continue
        pick = max if higher_is_better(name) else min
        label = f"best (epoch {epochs[course.index(pick(course))]['epoch']})"
        style = "bold" if name == monitor else ""
        _row(table, name, course, "{:.4f}", label, pick, style)
    _row(table, "learning rate", values(intervals, "lr"), "{:.2e}", "peak", max)
    _row(table, "gradient norm", values(intervals, "grad_norm"), "{:.3g}", "largest", max)
    _row(table, "clipped steps", values(intervals, "clipped_share"), "{:.1%}", "most", max)
    _row(table, "stamps/s", values(intervals, "samples_per_s"), "{:,.0f}", "best", max)
    _row(table, "waiting for data", values(intervals, "data_wait_share"), "{:.1%}", "most", max)
    _row(table, "GPU memory", values(intervals, "gpu_memory_gib"), "{:.1f} GiB", "peak", max)
    waited = since_best(snapshot.history)
    if waited:
        patience = snapshot.config.train.patience
        limit = f" of {patience}" if patience else ""
        table.add("without gain", f"{waited}{limit}", "epochs", "")
    return table


def _row(
    table: TextTable,
    name: str,
    course: list[float],
    form: str,
    label: str,
    pick: Any,
    style: str = "",
) -> None:
    if course:
        best = f"{label} {form.format(pick(course))}"
        now = Text(form.format(course[-1]), style)
        table.add(Text(name, style), now, best, Course(course))


class Course:
    """A sparkline as wide as there is room for."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(COURSE_WIDTH, options.max_width)
        yield Text(sparkline(self.values, width), "blue", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = min(COURSE_WIDTH, len(self.values))
        return Measurement(min(8, longest), longest)


def findings(snapshot: Snapshot) -> Table:
    """What the numbers mean, with evidence and advice."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in snapshot.diagnoses:
        colour = COLOURS[finding.severity]
        body = Text.assemble(finding.evidence, "\n", ("→ ", colour), (finding.action, "italic"))
        table.add_row(Text(finding.name, f"bold {colour}"), body)
    return table


def sparkline(course: Sequence[float], width: int = COURSE_WIDTH) -> str:
    """Numbers as at most `width` blocks, scaled to their range; neighbours are averaged."""
    finite = [value for value in course if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    bounds = [round(i * len(finite) / count) for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(bounds) if b > a]
    low, high = min(means), max(means)
    if high - low <= 1e-3 * abs(high):  # the noise of a constant is no course
        return BLOCKS[0] * len(means)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (value - low) / (high - low))] for value in means)
