"""The screen: one panel per run, with its numbers, their course, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lenstrain.evaluation.metrics import higher_is_better, watched
from lenstrain.monitor.diagnosis import since_best, values
from lenstrain.monitor.snapshot import Snapshot, words

BLOCKS = "▁▂▃▄▅▆▇█"
COURSE_WIDTH = 36
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


def screen(snapshots: Sequence[Snapshot]) -> RenderableType:
    """All runs, one below the other."""
    return Group(*(panel(snapshot) for snapshot in snapshots))


def panel(snapshot: Snapshot) -> RenderableType:
    """One run."""
    parts: list[RenderableType] = [header(snapshot)]
    if snapshot.history.intervals or snapshot.history.epochs:
        parts += [Text(), numbers(snapshot)]
    if snapshot.diagnoses:
        parts += [Text(), findings(snapshot)]
    colour = STATUS_COLOURS[snapshot.status]
    title = Text.assemble((snapshot.status, colour), "  ", (snapshot.run, "bold"))
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def header(snapshot: Snapshot) -> RenderableType:
    """State, model and device, and how far the run is."""
    if snapshot.status == "not started":
        return Text(snapshot.detail)
    config = snapshot.config
    what = f"  {config.model.arch}, batch {config.data.batch_size} {snapshot.device}".rstrip()
    lines: list[RenderableType] = [Text.assemble(snapshot.detail, (what, "dim"))]
    if snapshot.steps:
        row = Table.grid(padding=(0, 2))
        share = f"{100 * snapshot.step / snapshot.steps:.0f} %"
        epochs = f"epoch {len(snapshot.history.epochs)} of {config.train.epochs} done"
        step = f"step {snapshot.step:,} of {snapshot.steps:,}"
        left = snapshot.seconds_left
        end = "" if left is None else f"at most {words(left)} left"
        bar = ProgressBar(total=snapshot.steps, completed=snapshot.step, width=30)
        row.add_row(bar, share, epochs, step, Text(end, "bold"))
        lines.append(row)
    return Group(*lines)


def numbers(snapshot: Snapshot) -> Table:
    """Each number: its latest value, its best, and its course from the start."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("", "left"), ("now", "right"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("course")  # shortened on a narrow screen, so that the numbers stay whole
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
        _row(table, f"validation {name}", course, "{:.4f}", label, pick, style)
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
        table.add_row("without gain", f"{waited}{limit}", "epochs", "")
    return table


def _row(
    table: Table, name: str, course: list[float], form: str, label: str, pick: Any, style: str = ""
) -> None:
    if course:
        best = f"{label} {form.format(pick(course))}"
        now = Text(form.format(course[-1]), style)
        table.add_row(Text(name, style), now, best, Course(course))


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
    table.add_column()
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
