"""What every command shares: errors in one line, progress on stderr, JSON on stdout, S3 options."""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lensprep.dataset.files import uri_suffix
from lensprep.dataset.s3client import S3Options, interruptible
from lensprep.dataset.storage import local_path
from lensprep.errors import ProjectError, StorageError

P = ParamSpec("P")
R = TypeVar("R")

_LINE_SECONDS = 10.0
"""Time between two lines of progress where there is no terminal to draw a bar on."""

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it for the first."""


def clean_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the project's own exceptions into one line and status 1; others keep their trace.

    Ctrl-C and SIGTERM end a command in the same way, cleaning up; a second one ends it at once.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with interruptible(signal.SIGINT, signal.SIGTERM):
                return function(*args, **kwargs)
        except ProjectError as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            Console(stderr=True).print("Stopped.", highlight=False)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # `lensprep inspect ... | head` is no error
            sys.stderr.close()
            sys.exit(0)

    return wrapped


def s3_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that say how to reach an object store, as one ``options``."""

    @click.option("--endpoint-url", help="Another object store than AWS: http://host:port.")
    @click.option("--profile", help="Profile of the AWS configuration files.")
    @click.option("--region", help="Region of the bucket.")
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> R:
        names = ("endpoint_url", "profile", "region", "storage_class", "encryption", "kms_key_id")
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        if given.get("kms_key_id") and given["encryption"] != "aws:kms":
            raise click.UsageError("--kms-key-id needs --encryption aws:kms.")
        return function(*args, options=S3Options(**given), **kwargs)

    return wrapped


def write_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of objects that it writes; `s3_options` comes above it."""
    for option in (
        click.option("--kms-key-id", help="Key for aws:kms [default: the account's]."),
        click.option(
            "--encryption",
            type=click.Choice(["AES256", "aws:kms"]),
            help="Server-side encryption in an object store [default: the bucket's].",
        ),
        click.option(
            "--storage-class", help="Such as INTELLIGENT_TIERING [default: the bucket's]."
        ),
    ):
        function = option(function)
    return function


def print_json(data: Any) -> None:
    """Print exactly one JSON object on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr with rate and time left.

    Yields
    ------
    callable
        Takes the name of a phase, what is done and the total; a new name begins a new bar.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LineReporter(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, rate="")
            task = tasks[phase]
            speed = bar.tasks[bar.task_ids.index(task)].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, completed=done, total=total, rate=rate)

        yield report


class _LineReporter:
    """Progress for a log file: a line now and then instead of a bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun: dict[str, float] = {}
        self._told = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        begun = self._begun.setdefault(phase, now)
        if now - self._told < _LINE_SECONDS:
            return
        self._told = now
        rate = done / (now - begun) if now > begun else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if rate else ""
        self._console.print(f"{phase}: {done:,} of {total:,}, {rate:,.0f}/s{left}", highlight=False)


class Location(click.Path):
    """Type of a parameter that names a file or folder, local or ``s3://``; its value is a str.

    ``click.Path`` itself makes ``s3:/x`` of ``s3://x``, and a folder of that name is then written.

    Parameters
    ----------
    *suffixes : str
        Endings that a file to be written may have; each says how.
    """

    def __init__(self, *suffixes: str) -> None:
        super().__init__()
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The location; a suffix that says nothing is a usage error."""
        text = str(value)
        if self.suffixes and uri_suffix(text) not in self.suffixes:
            known = ", ".join(self.suffixes)
            self.fail(f"{text}: the suffix says how it is written, one of {known}.", param, ctx)
        return text


class LocalPath(click.Path):
    """Type of a parameter that must be on a disk; its value is a Path."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; an object store is a usage error."""
        try:
            return Path(str(super().convert(local_path(value), param, ctx)))
        except StorageError:
            self.fail(f"{value}: this must be on a local disk.", param, ctx)


LOCATION = Location()
PICTURE = Location(".png", ".jpg", ".jpeg", ".pdf")
LOCAL = LocalPath()
