"""Signals against code that does not come back to Python, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, signal, sys, time
import click
from lensprep.store import interrupts
from lensprep.store.interrupts import grace
from lensprep.terminal import ProjectGroup

interrupts.GRACE_SECONDS = 0.7

@click.group(cls=ProjectGroup)
def main():
    pass

def begin():
    print("begun", flush=True)

def one_call():
    # A single call of C that takes hours, without Python's global lock.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

@main.command()
def plain():
    begin()
    one_call()

@main.command()
def tidying():
    begin()
    try:
        time.sleep(60)
    finally:
        one_call()

@main.command()
def training():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with grace(2.0, "Continue with --resume.", keeps_state=True):
        begin()
        one_call()

@main.command()
def answering():
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    with grace(0.5, keeps_state=True):
        begin()
        while not heard:
            time.sleep(0.01)
    time.sleep(1.2)
    print("went on")

main()
"""


@pytest.fixture
def begin():
    """Starts a command of the program above, and waits until it has begun."""
    started = []

    def start(command):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell that runs the tests in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end_of(process):
    """Exit status, seconds until then, and standard error."""
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - began, err


@pytest.mark.parametrize(
    ("command", "number"), [("plain", signal.SIGTERM), ("tidying", signal.SIGINT)]
)
def test_one_signal_ends_a_command_that_does_not_hear_it(begin, command, number):
    process = begin(command)
    process.send_signal(number)
    status, seconds, err = end_of(process)
    assert (status, err) == (130, "Stopped in the middle of something that would not end.\n")
    assert 0.5 < seconds < 10.0


def test_a_training_has_longer_and_says_how_to_go_on(begin):
    process = begin("training")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # from the scheduler, and from the launcher once more
    status, seconds, err = end_of(process)
    assert status == 75
    told, end = err.splitlines()
    assert told.startswith("Stopping: what is under way has ")
    assert end.endswith("Continue with --resume.")
    assert 1.2 < seconds < 12.0


def test_ctrl_c_twice_ends_a_training_at_once(begin):
    process = begin("training")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    status, seconds, _ = end_of(process)
    assert status == 130
    assert seconds < 1.7


def test_a_signal_that_was_answered_does_not_end_the_program(begin):
    process = begin("answering")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "went on\n", "")
