"""What all commands share: errors in one line, progress on stderr, JSON on stdout, S3 options."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
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
from rich.segment import Segment

from lensprep.errors import ProjectError, StorageError, plain_text, without_control
from lensprep.extras import install_hint
from lensprep.store import S3Options, local_path, uri_suffix
from lensprep.store.interrupts import INTERRUPTED, Watchdog, interruptible

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_LINE_SECONDS = 10.0
"""Time between two lines of progress where there is no terminal for a bar."""

_OF_FILES = frozenset({
    errno.EACCES, errno.EBUSY, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR,
    errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE, errno.ENOENT, errno.ENOSPC,
    errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, errno.EROFS, errno.ESTALE, errno.ETXTBSY,
})  # fmt: skip
"""What a disk, its permissions or its limits answer: for the user to mend, not a bug."""


class ProjectGroup(click.Group):
    """The edge of a program: how its commands end.

    The project's own errors, disks that are full or read-only, and packages that are not installed
    become one line and exit status 1; anything else keeps its traceback. Ctrl-C and SIGTERM end a
    command with 130 after cleaning up, a second one at once; see `lensprep.store.interrupts`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program, in a process that has no other purpose."""
        Watchdog.start()
        threading.excepthook = _report_thread
        # Without a home folder it warns at length that it works without one.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        for stream in (sys.stdout, sys.stderr):
            # A character that the terminal lacks becomes a question mark instead of an error.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            with interruptible(signal.SIGINT, signal.SIGTERM):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(INTERRUPTED)
        except click.ClickException as error:
            vars(error).update(message=plain_text(error.message))
            raise
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                sys.stderr.close()  # `lensprep inspect ... | head` is no error
                ctx.exit(0)
            line = one_line(error)
            if line is None:
                raise
            click.echo(f"Error: {line}", err=True)
            ctx.exit(1)


def one_line(error: BaseException) -> str | None:
    """The message of an error for the user; None if the error was not foreseen."""
    if isinstance(error, ProjectError):
        return plain_text(str(error))
    if isinstance(error, ModuleNotFoundError):
        return install_hint(error.name or "")
    if isinstance(error, BrokenPipeError):  # Click would end silently
        return "A process or a connection that this command needs has ended (broken pipe)."
    if isinstance(error, OSError) and error.errno in _OF_FILES:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        where = " and ".join(files) or "A file"
        return plain_text(f"{where} could not be read or written: {error.strerror}.")
    if isinstance(error, sqlite3.OperationalError):
        return plain_text(f"The database could not be read or written: {error}.")
    return one_line(error.__cause__) if error.__cause__ is not None else None


def _report_thread(args: threading.ExceptHookArgs) -> None:
    """One line too for a thread that met a full disk (TensorBoard's); its next user fails."""
    line = None if args.exc_value is None else one_line(args.exc_value)
    if line is None:
        threading.__excepthook__(args)
    else:
        click.echo(f"Warning: {line}", err=True)


def _nobody_reads() -> bool:
    """Whether the other end of standard output or error has gone."""
    poll = select.poll()
    poll.register(1, 0)
    poll.register(2, 0)
    return bool(poll.poll(0))


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_reaching_options = _options(
    click.option("--endpoint-url", help="Another object store than AWS: http://host:port."),
    click.option("--profile", help="Profile of the AWS configuration files."),
    click.option("--region", help="Region of the bucket."),
)

write_options = _options(
    click.option("--storage-class", help="Such as INTELLIGENT_TIERING [default: the bucket's]."),
    click.option(
        "--encryption",
        type=click.Choice(["AES256", "aws:kms"]),
        help="Server-side encryption in an object store [default: the bucket's].",
    ),
    click.option("--kms-key-id", help="Key for aws:kms [default: the account's]."),
)
"""Give a command the options of objects that it writes; `s3_options` comes above it."""


def s3_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of how to reach an object store, as one argument ``options``."""

    @_reaching_options
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> R:
        names = ("endpoint_url", "profile", "region", "storage_class", "encryption", "kms_key_id")
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        if given.get("kms_key_id") and given["encryption"] != "aws:kms":
            raise click.UsageError("--kms-key-id needs --encryption aws:kms.")
        return function(*args, options=S3Options(**given), **kwargs)

    return wrapped


def s3_variables(function: F) -> F:
    """Give a command the same options, and set them as the AWS variables of this process.

    So whatever opens the dataset finds its store, in the processes that a command starts too.
    """

    @_reaching_options
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = {
            "AWS_ENDPOINT_URL_S3": kwargs.pop("endpoint_url"),
            "AWS_PROFILE": kwargs.pop("profile"),
            "AWS_DEFAULT_REGION": kwargs.pop("region"),
        }
        if given["AWS_PROFILE"]:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                os.environ.pop(name, None)  # or they would win over the profile
        os.environ.update({name: value for name, value in given.items() if value})
        return function(*args, **kwargs)

    return cast(F, wrapped)


def print_json(data: Any) -> None:
    """Print exactly one JSON object on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def print_rich(renderable: RenderableType) -> None:
    """Print on stdout, without the control characters that names from outside may hold."""
    Console().print(_Shown(renderable))


class _Shown:
    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._renderable, options):
            yield Segment(without_control(text), style, control)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr with rate and time left.

    Yields
    ------
    callable
        Takes the name of a phase, what is done and the total; a new name begins a new bar.
    """
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    begun: dict[str, float] = {}
    last = told = time.monotonic()

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last, told
        now = time.monotonic()
        # Its first report may come late, with much done: a phase begins where the last one ended.
        start = begun.setdefault(phase, last)
        last = now
        rate = done / (now - start) if now > start else 0.0
        if console.is_terminal:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, rate="")
                bar.tasks[-1].start_time = start
            text = f"{rate:,.0f}/s" if rate else ""
            bar.update(tasks[phase], completed=done, total=total, rate=text)
        elif now - told >= _LINE_SECONDS:
            told = now
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
            line = f"{phase}: {done:,} of {total:,}, {rate:,.0f}/s{left}"
            console.print(line, highlight=False)

    with bar if console.is_terminal else nullcontext():
        yield report


class LogLines(logging.Handler):
    """Shows the records of the program's own loggers as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; under torchrun only warnings come from all processes."""
        if record.levelno < logging.WARNING and int(os.environ.get("RANK", "0")):
            return
        mark = "Warning: " if record.levelno >= logging.WARNING else ""
        # Through Click, since a progress bar replaces standard error while it is drawn.
        click.echo(f"{mark}{plain_text(record.getMessage())}", err=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Show the log of both packages while a command runs."""
    loggers = [logging.getLogger(name) for name in ("lenstrain", "lensprep")]
    levels = [logger.level for logger in loggers]
    handler = LogLines(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


class Location(click.Path):
    """Type of a parameter that names a file or folder, local or ``s3://``; its value is a str.

    ``click.Path`` itself turns ``s3://x`` into ``s3:/x``, and a folder of that name is written.

    Parameters
    ----------
    *suffixes : str
        Endings that a file to be written may have; they choose its format.
    """

    def __init__(self, *suffixes: str) -> None:
        super().__init__()
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The location; an unknown suffix is a usage error."""
        text = str(value)
        if self.suffixes and uri_suffix(text) not in self.suffixes:
            known = ", ".join(self.suffixes)
            self.fail(f"{text}: the suffix says how it is written, one of {known}.", param, ctx)
        return text


class LocalPath(click.Path):
    """Type of a parameter that names a local file or folder; its value is a Path."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; an object store is a usage error."""
        try:
            return Path(str(super().convert(local_path(value), param, ctx)))
        except StorageError:
            self.fail(f"{value}: this must be on a local disk.", param, ctx)


LOCATION = Location()
PICTURE = Location(".png", ".jpg", ".jpeg", ".pdf")
LOCAL = LocalPath()
