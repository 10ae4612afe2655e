"""The edge of both programs: what errors, odd terminals and late reports look like to a user."""

import errno
import io
import json
import os
import sqlite3
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

from lensprep import terminal
from lensprep.errors import ConfigError, InputError, count_text
from lensprep.extras import EXTRAS, install_hint
from lensprep.terminal import one_line, parse_fractions, print_rich, progress_bar


class Now:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds


class Screen(io.StringIO):
    """A terminal, as far as its file knows."""

    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    clock = Now()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def test_a_line_of_progress_counts_from_the_beginning_and_not_from_the_first_report(now, capsys):
    with progress_bar() as show:
        now.seconds = 20.0
        show("decode", 4_000, 12_000)
        now.seconds = 40.0
        show("decode", 12_000, 12_000)
        now.seconds = 50.0
        show("shards", 1_000, 12_000)
    assert capsys.readouterr().err.splitlines() == [
        "decode: 4,000 of 12,000, 200/s, 40 s left",
        "decode: 12,000 of 12,000, 300/s, 0 s left",
        "shards: 1,000 of 12,000, 100/s, 1.8 min left",
    ]


def test_a_bar_counts_from_the_beginning_too(now, monkeypatch):
    file = Screen()
    console = Console(file=file, force_terminal=True, width=120, get_time=now.monotonic)
    monkeypatch.setattr(terminal, "Console", lambda **_: console)
    with progress_bar() as show:
        now.seconds = 20.0
        show("decode", 4_000, 12_000)
    shown = Text.from_ansi(file.getvalue()).plain
    assert "200/s, 40 s left" in shown


@pytest.mark.parametrize(("variable", "value"), [("FORCE_COLOR", "1"), ("TERM", "dumb")])
def test_a_bar_is_drawn_only_where_it_can_be_drawn_again(now, monkeypatch, variable, value):
    """Colours asked for in a pipe, and a terminal without control codes, both get lines."""
    file = Screen() if variable == "TERM" else io.StringIO()
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stderr", file)
    with progress_bar() as show:
        now.seconds = 20.0
        show("decode", 4_000, 12_000)
    assert file.getvalue() == "decode: 4,000 of 12,000, 200/s, 40 s left\n"


def test_no_colour_is_printed_where_none_is_wanted(monkeypatch):
    file = Screen()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setenv("TERM", "xterm-256color")
    print_rich(Text("failed", "red"))
    assert file.getvalue() == "\x1b[31mfailed\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    file.truncate(0), file.seek(0)
    print_rich(Text("failed", "red"))
    assert file.getvalue() == "failed\n"


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("train=0.6,val=0.15,test=0.25", {"train": 0.6, "val": 0.15, "test": 0.25}),
        ("0.6,0.15,0.25", {"train": 0.6, "val": 0.15, "test": 0.25}),
        ("60/15/25", {"train": 0.6, "val": 0.15, "test": 0.25}),
        ("test=0.2, train=0.8", {"test": 0.2, "train": 0.8}),
    ],
)
def test_split_fractions_are_written_one_way_and_read_as_before(text, shares):
    assert parse_fractions(text) == shares


@pytest.mark.parametrize(
    "text",
    ["train", "train=x", "train=0.5", "train=1.5,val=-0.5", "", "valid=1", "0.9,0.1", "0/0/0",
     "train=nan,val=0.5,test=0.5"],
)  # fmt: skip
def test_fractions_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="split fractions"):
        parse_fractions(text)


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "lens", "1 lens"), (0, "row", "0 rows"), (2_000, "lens", "2,000 lenses"),
     (3, "family", "3 families"), (2, "key", "2 keys")],
)  # fmt: skip
def test_numbers_of_things_have_the_right_plural(count, noun, text):
    assert count_text(count, noun) == text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full/a"),
         "/full/a could not be read or written: No space left on device."),
        (OSError(errno.EROFS, "Read-only file system", "/ro/a", None, "/ro/b"),
         "/ro/a and /ro/b could not be read or written: Read-only file system."),
        (OSError(errno.EFBIG, "File too large"),
         "A file could not be read or written: File too large."),
        (OSError(errno.ECONNREFUSED, "Connection refused"), None),
        (ModuleNotFoundError("No module named 'no'", name="no"), None),
        (ValueError("a fault of ours"), None),
    ],
)  # fmt: skip
def test_what_a_disk_refuses_is_one_line_and_what_nobody_expected_keeps_its_trace(error, line):
    assert one_line(error) == line


def test_a_name_or_a_password_of_others_reaches_no_terminal_as_it_is(capsys):
    line = one_line(InputError("bad/\x1b[31mx\nat postgresql://me:secret@host/db\u202e"))
    assert line == "bad/?[31mx at postgresql://host/db?"
    print_rich(Text("a column \x1b[31mred\nnext", "bold"))
    assert capsys.readouterr().out == "a column ?[31mred\nnext\n"


def test_the_database_of_a_study_on_a_full_disk_is_one_line():
    error = ValueError("wrapped by others")
    error.__cause__ = sqlite3.OperationalError("database or disk is full")
    assert one_line(error) == "The database could not be read or written: database or disk is full."


def test_every_extra_that_can_be_missing_has_its_hint():
    for extra, names in EXTRAS.items():
        for name in names:
            hint = install_hint(f"{name}.below")
            assert f"pip install '.[{extra}]'" in hint
            assert f"-py3-none-any.whl[{extra}]'" in hint
    assert install_hint("numpy") is None


PROGRAM = r"""
import os, sys, threading
import click
from lensprep.terminal import ProjectGroup, print_json

@click.group(cls=ProjectGroup)
def main():
    pass

@main.command()
def say():
    print("θ_E … 1″ \udcff")
    print("θ_E …", file=sys.stderr)
    print_json({"key": "θ_E"})

@main.command()
def thread():
    def write():
        raise OSError(28, "No space left on device", "events")
    one = threading.Thread(target=write)
    one.start()
    one.join()

@main.command()
def pipe():
    read, write = os.pipe()
    os.close(read)
    os.write(write, b"x")

main()
"""


@pytest.fixture
def program(tmp_path):
    """Runs a command of the program above."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, "utf-8")

    def run(command, stdout=subprocess.PIPE, **environment):
        return subprocess.run(
            [sys.executable, file, command],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            env=os.environ | environment,
        )

    return run


def test_a_terminal_without_the_characters_shows_others_and_json_stays_whole(program):
    done = program(
        "say", LC_ALL="C", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.decode("ascii").split("\n", 1)
    assert first == "?_E ? 1? ?"
    assert json.loads(rest[0]) == {"key": "θ_E"}
    assert done.stderr == b"?_E ?\n"


def test_a_thread_that_met_a_full_disk_is_one_line(program):
    done = program("thread")
    assert done.stderr == (
        b"Warning: events could not be read or written: No space left on device.\n"
    )


def test_a_broken_pipe_between_processes_is_no_success(program):
    """It is only where nobody reads what is printed, as with `lensprep inspect ... | head`."""
    done = program("pipe")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: A process or a connection")
    read, write = os.pipe()
    os.close(read)
    done = program("say", stdout=write)
    os.close(write)
    assert done.returncode == 0
    assert b"rror" not in done.stderr
