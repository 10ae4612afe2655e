"""The engine: every task once, errors as they are, no process left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lensprep.engine import run_tasks
from lensprep.errors import InputError, ProjectError
from lensprep.kernel import notice
from tests.engine_tasks import die_once_at_three
from tests.waiting import wait_until


def square(n):
    return n * n


def fail_at_three(n):
    if n == 3:
        raise InputError("three is bad")
    return n


def die_at_three(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(workers):
    assert sorted(run_tasks(square, range(20), workers=workers)) == [n * n for n in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_arrives_as_it_is(workers):
    with pytest.raises(InputError, match="three is bad"):
        list(run_tasks(fail_at_three, range(20), workers=workers))


def end_at_three(n):
    if n == 3:
        os._exit(7)
    return n


@pytest.mark.parametrize(
    ("task", "workers", "message"),
    [
        (
            die_at_three,
            2,
            r"was killed \(SIGKILL: out of memory\?\), 4 times.*a conversion.*--resume",
        ),
        (end_at_three, 1, r"A worker process ended \(exit status 7\), 4 times"),
    ],
)
def test_a_worker_that_dies_is_told_with_the_remedy(task, workers, message):
    with pytest.raises(ProjectError, match=message):
        list(run_tasks(task, range(6), workers=workers, apart=True))


def tell_of_compiling(n):
    notice.tell()
    return n


def test_workers_that_compile_are_said_once_by_the_driver(caplog, monkeypatch):
    monkeypatch.setattr(notice, "_said", False)
    caplog.set_level(logging.INFO, "lensprep")
    assert sorted(run_tasks(tell_of_compiling, range(6), workers=2)) == list(range(6))
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["Compiling for this machine"]


class Named(int):
    @property
    def label(self):
        return f"number {int(self)}"


def test_the_task_of_a_killed_worker_is_named_and_done_again(tmp_path, caplog):
    function = partial(die_once_at_three, tmp_path)
    done = list(run_tasks(function, [Named(n) for n in range(9)], workers=2))
    assert sorted(done) == list(range(9))
    assert "killed (SIGSEGV) while it did number 3. Its task is repeated." in caplog.text


def send_half_at_three(folder, then, n):
    """Do tasks whose results are long; that of task 3 is cut in the middle, once."""
    if n == 3 and not (folder / "half").exists():

        def send_half(self, message):
            os.write(self.fileno(), message[: len(message) // 2])
            (folder / "half").touch()
            then()

        Connection._send = send_half
    return bytes(50_000)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_task_of_a_worker_killed_while_it_sends_its_result_is_done_again(tmp_path, caplog):
    """Which kept the driver waiting forever for the rest of the result."""
    function = partial(send_half_at_three, tmp_path, kill_itself)
    assert len(list(run_tasks(function, range(9), workers=2))) == 9
    assert "was killed (SIGKILL: out of memory?). Its task is repeated." in caplog.text


def test_whoever_stops_while_a_result_is_sent_leaves_no_thread(tmp_path):
    """A thread that waits for the rest kept the program from ending."""
    before = set(threading.enumerate())
    results = run_tasks(partial(send_half_at_three, tmp_path, signal.pause), range(9), workers=2)
    next(results)
    own = set(threading.enumerate()) - before
    wait_until((tmp_path / "half").exists)
    results.close()
    assert own
    assert not any(thread.is_alive() for thread in own)


def test_workers_end_when_the_driver_is_killed(tmp_path):
    program = tmp_path / "driver.py"
    program.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from lensprep.engine import run_tasks\n"
        "def work(n):\n"
        f"    Path({str(tmp_path)!r}, f'pid{{n}}').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(work, range(2), workers=2))\n"
    )
    driver = subprocess.Popen([sys.executable, program])
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    wait_until(lambda: all(f.exists() and f.read_text() for f in files))
    pids = [int(f.read_text()) for f in files]
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
