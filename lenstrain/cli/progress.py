"""What a person sees while a command runs: one line with rate and time left, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from lenstrain.training.run import Event


def make_bar(*columns: Any) -> Progress:
    """A transient bar on standard error; silent where that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


LINE_SECONDS = 10.0
"""Time between two lines of progress where there is no terminal to draw a bar on."""


class Lines:
    """Progress as lines, one every few seconds at most, for logs of batch systems."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.started = self.shown = time.monotonic()

    def show(self, name: str, done: float, total: float, note: str = "") -> None:
        """Show where things are, if it is time and there is no bar."""
        now = time.monotonic()
        if not self.bar.disable or now - self.shown < LINE_SECONDS or not 0 < done < total:
            return
        self.shown = now
        left = (now - self.started) * (total - done) / done
        text = f"{name}: {100 * done / total:.0f}%, about {left:.0f} s left"
        print_line(self.bar, f"{text}, {note}" if note else text)


def print_line(bar: Progress, text: str) -> None:
    """Print a line above the bar, never wrapped."""
    bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def stage_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for something counted in stamps: called with (done, total)."""
    with make_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(name, total=None, note="")
        lines = Lines(bar)

        def update(done: int, total: int) -> None:
            note = f"{done / max(time.monotonic() - lines.started, 1e-9):,.0f} stamps/s"
            bar.update(task, completed=done, total=total, note=note)
            lines.show(name, done, total, note)

        yield update


@contextmanager
def bytes_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for bytes: called with (done, total), from any thread."""
    with make_bar(DownloadColumn(), TransferSpeedColumn()) as bar:
        task = bar.add_task(name, total=None, note="")
        lines = Lines(bar)
        first: int | None = None

        def update(done: int, total: int) -> None:
            nonlocal first
            first = done if first is None else first  # what was there before has no rate
            bar.update(task, completed=done, total=total)
            rate = (done - first) / max(time.monotonic() - lines.started, 1e-9)
            lines.show(name, done - first, total - first, f"{rate / 1e6:,.0f} MB/s")

        yield update


@contextmanager
def share_progress() -> Iterator[Callable[[str, float], None]]:
    """A bar for named stages: called with (stage that begins, share of work done)."""
    with make_bar(TaskProgressColumn()) as bar:
        task = bar.add_task("", total=1.0, note="")
        lines = Lines(bar)

        def update(stage: str, share: float) -> None:
            bar.update(task, description=stage, completed=share)
            lines.show(stage, share, 1.0)

        yield update


class TrainProgress:
    """A bar over the whole run, and a line that stays for each epoch."""

    def __init__(self) -> None:
        self.bar = make_bar(MofNCompleteColumn())
        self.task = self.bar.add_task("starting", total=None, note="")
        self.lines = Lines(self.bar)
        self.first: int | None = None
        self.record: dict[str, Any] = {}

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event of the run."""
        name = f"epoch {event.epoch}/{event.epochs}"
        if event.stage == "epoch":
            print_line(self.bar, epoch_line(event))
            return
        if event.stage == "validate":
            self.bar.update(self.task, description=f"{name} validating")
            return
        self.record = event.record or self.record
        done = (event.epoch - 1) * event.steps + event.step
        total = event.epochs * event.steps
        note = train_note(self.record)
        self.bar.update(self.task, description=name, completed=done, total=total, note=note)
        # A resumed run starts in the middle: its time belongs to the steps since.
        self.first = done - 1 if self.first is None else self.first
        self.lines.show(name, done - self.first, total - self.first, note)


def epoch_line(event: Event) -> str:
    """One epoch in one line."""
    from lenstrain.evaluation.metrics import steering

    record = event.record
    shown = [f"epoch {event.epoch}/{event.epochs}", f"train loss {record['train_loss']:.4f}"]
    for name in steering():
        shown.append(f"{name} {record[name]:.4f}")
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
