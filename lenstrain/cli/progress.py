"""What a person sees while a command runs: one line with rate and time left, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lensprep.errors import time_text
from lensprep.terminal import can_draw

if TYPE_CHECKING:
    from lenstrain.training.run import Event

LINE_SECONDS = 10.0
"""Time between two lines of progress where there is no terminal to draw a bar on."""


class Bar:
    """A transient bar on standard error; where that is no terminal, a line every few seconds."""

    def __init__(self, name: str, *columns: ProgressColumn) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not can_draw(console.file),
        )
        self.task = self.bar.add_task(name, total=None, note="")
        self.started = self.shown = time.monotonic()
        self.first = 0.0
        """What was done before: it has no rate."""

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.bar.disable:  # rich 13 would end with an empty line
            self.bar.stop()

    def show(self, name: str, done: float, total: float, note: str = "") -> None:
        """Show where things are."""
        self.bar.update(self.task, description=name, completed=done, total=total, note=note)
        now = time.monotonic()
        own = done - self.first
        if not self.bar.disable or now - self.shown < LINE_SECONDS or own <= 0 or done >= total:
            return
        self.shown = now
        left = (now - self.started) * (total - done) / own
        text = f"{name}: {100 * done / total:.0f}%, about {time_text(left)} left"
        self.print_line(f"{text}, {note}" if note else text)

    def rate(self, done: float) -> float:
        """What was done in a second, so far."""
        return (done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def print_line(self, text: str) -> None:
        """Print a line above the bar, never wrapped."""
        self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def stage_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for something counted in stamps: called with (done, total)."""
    with Bar(name, MofNCompleteColumn()) as bar:
        yield lambda done, total: bar.show(name, done, total, f"{bar.rate(done):,.0f} stamps/s")


@contextmanager
def bytes_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for bytes: called with (done, total), from any thread, first with what was there."""
    with Bar(name, DownloadColumn()) as bar:
        begun = False

        def update(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                begun, bar.first = True, done
            bar.show(name, done, total, f"{bar.rate(done) / 1e6:,.0f} MB/s")

        yield update


@contextmanager
def share_progress() -> Iterator[Callable[[str, float], None]]:
    """A bar for named stages: called with (stage that begins, share of work done)."""
    with Bar("", TaskProgressColumn()) as bar:
        yield lambda stage, share: bar.show(stage, share, 1.0)


class StepsColumn(MofNCompleteColumn):
    """Steps done, of how many; nothing before the first one."""

    def render(self, task: Task) -> Text:
        """The text of a task."""
        return Text() if task.total is None else super().render(task)


class TrainProgress(Bar):
    """A bar over the whole run, and a line that stays for each epoch."""

    def __init__(self) -> None:
        super().__init__("starting", StepsColumn())
        self.record: dict[str, Any] = {}
        self.begun = False

    def doing(self, what: str) -> None:
        """Show what the start is busy with; without a terminal, if it takes long."""
        self.bar.update(self.task, description=f"starting: {what}")
        now = time.monotonic()
        if self.bar.disable and now - self.shown >= LINE_SECONDS:
            self.shown = now
            self.print_line(f"starting: {what}")

    def __call__(self, event: Event) -> None:
        """Take in an event of the run."""
        if event.stage == "start":
            self.doing(event.doing)
            return
        name = f"epoch {event.epoch}/{event.epochs}"
        if event.stage == "epoch":
            self.print_line(epoch_line(event))
            return
        if event.stage == "validate":
            self.bar.update(self.task, description=f"{name} validating")
            return
        self.record = event.record or self.record
        done = (event.epoch - 1) * event.steps + event.step
        if not self.begun:  # a resumed run starts in the middle, and a start is no part of a rate
            self.begun, self.first, self.started = True, done, time.monotonic()
        total = event.epochs * event.steps
        self.show(f"{name}, whole run", done, total, train_note(self.record))


def epoch_line(event: Event) -> str:
    """One epoch in one line."""
    from lenstrain.evaluation.metrics import watched

    record = event.record
    shown = [f"epoch {event.epoch}/{event.epochs}", f"train loss {record['train_loss']:.4f}"]
    shown += [f"{name} {record[name]:.4f}" for name in watched() if name in record]
    if record["epochs_without_gain"]:
        shown.append(f"no gain for {record['epochs_without_gain']}")
    return "  ".join(shown)


def train_note(record: dict[str, Any]) -> str:
    """Rate, data wait and loss of the last interval."""
    if not record:
        return ""
    return (
        f"{record['samples_per_s']:,.0f} stamps/s, waiting for data "
        f"{100 * record['data_wait_share']:.1f}%, loss {record['loss']:.4f}"
    )
