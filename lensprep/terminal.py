"""What all commands share: errors in one line, progress on stderr, JSON on stdout, S3 options."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import select
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import click
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)
from rich.segment import Segment
from rich.text import Text

from lensprep.configfile import find_file, packaged_files
from lensprep.dataset.layout import SPLITS
from lensprep.errors import (
    ConfigError,
    ProjectError,
    StorageError,
    plain_text,
    time_text,
    without_control,
)
from lensprep.extras import install_hint
from lensprep.store import S3Options, local_path, read_file, uri_suffix
from lensprep.store.interrupts import INTERRUPTED, Watchdog, interruptible
from lensprep.texttable import UNLIMITED, TextTable

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


class CommandGroup(click.Group):
    """Commands in the order of their use, each with the whole of its first sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which the commands were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and sentences, wrapped where Click would cut them."""
        with formatter.section("Commands"):
            formatter.write_dl([
                (name, command.get_short_help_str(limit=1_000))
                for name, command in self.commands.items()
            ])  # fmt: skip


class ProjectGroup(CommandGroup):
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


def parse_fractions(text: str) -> dict[str, float]:
    """Shares of the splits from text such as ``train=0.8,val=0.1,test=0.1``.

    Three numbers for train, val and test in this order, ``0.8,0.1,0.1`` or ``80/10/10``, are read
    too: earlier versions asked for them.

    Raises
    ------
    ConfigError
        If the text is not of that form, or the shares do not add up to 1.
    """
    try:
        if "=" in text:
            pairs = [part.partition("=")[::2] for part in text.split(",")]
            shares = {name.strip(): float(value) for name, value in pairs}
        else:
            parts = text.split("/" if "/" in text else ",")
            shares = dict(zip(SPLITS, map(float, parts), strict=True))
    except ValueError:
        shares = {}
    if not shares or not shares.keys() <= {*SPLITS}:
        raise ConfigError(
            f"split fractions {text!r} cannot be read. Write train=0.8,val=0.1,test=0.1."
        )
    total = sum(shares.values())
    if "/" in text and total > 0:
        shares, total = {name: share / total for name, share in shares.items()}, 1.0
    if not abs(total - 1) <= 1e-6 or min(shares.values()) < 0:
        raise ConfigError(
            f"split fractions {text!r} must be positive and add up to 1, not {total:g}."
        )
    return shares


def fractions_option(help: str, *, name: str = "--fractions", **named: Any) -> Callable[[F], F]:
    """Add ``--fractions``: what `parse_fractions` returns, or None."""

    def parse(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, float] | None:
        return None if text is None else parse_fractions(text)

    return click.option(name, callback=parse, metavar="train=F,val=F,test=F", help=help, **named)


def print_json(data: Any) -> None:
    """Print exactly one JSON object on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def print_rich(renderable: RenderableType) -> None:
    """Print on stdout, without the control characters that names from outside may hold.

    What is piped is neither wrapped nor left out, unless ``COLUMNS`` gives a width: programs read
    lines.
    """
    width, height = shutil.get_terminal_size((UNLIMITED, 25))
    console = Console(width=width, height=height)
    console.print(Shown(renderable), crop=False)  # what may not be broken is longer than a line


class Shown:
    """What is drawn, without control characters from outside and spaces at the ends of lines."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in Segment.split_lines(console.render(self._renderable, options)):
            while line and not line[-1].text.strip():
                line.pop()
            for number, (text, style, control) in enumerate(line, 1):
                shown = text.rstrip() if number == len(line) else text
                yield Segment(without_control(shown), style, control)
            yield Segment.line()


def can_draw(stream: IO[str]) -> bool:
    """Whether lines of a stream can be drawn again, whatever FORCE_COLOR says of its colours."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr with rate and time left.

    Yields
    ------
    callable
        Takes the name of a phase, what is done and the total; a new name begins a new bar.
    """
    console = Console(stderr=True)
    draws = can_draw(console.file)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
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
        text = f"{rate:,.0f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        text = f"{text}, {time_text((total - done) / rate)} left" if rate else ""
        if draws:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, rate="")
            bar.update(tasks[phase], completed=done, total=total, rate=text)
        elif now - told >= _LINE_SECONDS:
            told = now
            line = ", ".join(filter(None, (f"{phase}: {done:,} of {total:,}", text)))
            click.echo(line, err=True)

    with bar if draws else nullcontext():
        yield report


@contextmanager
def doing_on_stderr() -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is going on; called with the words."""
    with Console(stderr=True).status("") as status:
        yield lambda what: status.update(Text(f"{plain_text(what)} ..."))


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


class NamedFile(Location):
    """Type of a parameter that takes a configuration file, or the name of a packaged one.

    Parameters
    ----------
    package, folder : str
        Where the packaged files are, as for `lensprep.configfile.find_file`.
    """

    def __init__(self, package: str, folder: str) -> None:
        super().__init__()
        self.place = package, folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The location; an unknown name is an error that lists the names."""
        return find_file(super().convert(value, param, ctx), *self.place)


def print_names(package: str, folder: str, as_json: bool) -> None:
    """Print the names of packaged configuration files, with what each says first."""
    first = {
        name: path.read_text().partition("\n")[0].strip("# ")
        for name, path in packaged_files(package, folder).items()
    }
    if as_json:
        print_json(first)
        return
    table = TextTable("name", "what it is", prose="what it is")
    for name, text in first.items():
        table.add(name, text)
    print_rich(table)


def print_file(location: str) -> None:
    """Print a text file on stdout."""
    click.echo(without_control(read_file(location).decode(errors="replace")), nl=False)


class LocalPath(click.Path):
    """Type of a parameter that names a local file or folder; its value is a Path."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; an object store is a usage error."""
        try:
            return Path(str(super().convert(local_path(value), param, ctx)))
        except StorageError:
            self.fail(f"{value}: this must be on a local disk.", param, ctx)


LOCATION = Location()
disk_option = click.option(
    "--disk",
    "disks",
    type=LocalPath(file_okay=False),
    multiple=True,
    metavar="FOLDER",
    help="Folder whose disk is measured, with a file that is gone afterwards; repeatable [default: "
    "the current one and that of temporary files].",
)
store_option = click.option(
    "--store",
    type=LOCATION,
    metavar="s3://BUCKET/FOLDER",
    help="Folder of an object store in which to list, and to write, read and remove an object of "
    "a new name.",
)
PICTURE = Location(".png", ".jpg", ".jpeg", ".pdf")
LOCAL = LocalPath()
