"""Tasks and engines for tests of engines; workers elsewhere import them from here."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from lensprep.engine import Engine
from lensprep.errors import ChangedError, InputError
from tests.waiting import PATIENCE_SECONDS, wait_until

_HELD_AT = 2
"""Which of a task's files does not get its name: its first is there then, its marker is not."""


def square(n: int) -> int:
    return n * n


def fail_at_three(n: int) -> int:
    if n == 3:
        raise InputError("three is bad")
    return n


def fail_strangely(n: int) -> int:
    raise StrangeError(n, "cannot be made from its text alone")


class StrangeError(Exception):
    """As some libraries have them: pickled, it cannot be read again."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{number} {text}")


class DetailedError(ChangedError):
    """One of the project's own with something in it."""


def fail_with_detail(n: int) -> int:
    raise DetailedError("object changed", {"offset": n})


def die(n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return n


def die_once_at_three(folder: Path, n: int) -> int:
    if n == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return n


def wait_for_go(folder: Path, n: int) -> int:
    """Task 0 is done at once, the others when somebody says so."""
    (folder / f"begun-{n}").touch()
    if n:
        wait_until(lambda: (folder / "go").exists())
    return n


class HoldingEngine:
    """In each round one task is stopped in the middle of its writes, to be killed there."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    @property
    def workers(self) -> int:
        return self.engine.workers

    def __enter__(self) -> HoldingEngine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        call = partial(_held_once, self.folder, function.__name__, function)
        return self.engine.run(update_wrapper(call, function), tasks)


def _held_once(folder: Path, name: str, function: Callable[[Any], Any], task: Any) -> Any:
    first = getattr(task, "first", None)
    which = task.index if first is None else f"{task.split}-{first}"
    with (folder / f"calls-{name}").open("a") as file:  # one short line: not torn
        file.write(f"{which} {os.getpid()}\n")
    try:
        os.close(os.open(folder / f"held-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return function(task)
    replace, count = Path.replace, 0

    def hold(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == _HELD_AT:
            ready = folder / f"writing-{name}"
            replace(_written(ready, f"{which} {os.getpid()} {self}"), ready)
            time.sleep(PATIENCE_SECONDS)
            raise AssertionError("nobody killed this worker")
        return replace(self, target)

    Path.replace = hold  # type: ignore[method-assign, assignment]
    return function(task)


def _written(path: Path, text: str) -> Path:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    return draft


class Killer:
    """Kills the worker that is held in each round, once it is in the middle of a write."""

    def __init__(self, folder: Path, rounds: Sequence[str] = ("run_rows", "write_shards")) -> None:
        self.folder, self.rounds = folder, rounds
        self.killed: list[tuple[str, str, int, Path]] = []
        """Round, task, process, and the file that it was writing."""
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(1)

    def _kill(self) -> None:
        for name in self.rounds:
            ready = self.folder / f"writing-{name}"
            wait_until(ready.exists)
            which, pid, partial_file = ready.read_text().split(" ", 2)
            assert Path(partial_file).exists()
            os.kill(self.victim(int(pid)), signal.SIGKILL)
            self.killed.append((name, which, int(pid), Path(partial_file)))

    def victim(self, pid: int) -> int:
        """The process to kill: the one that is held."""
        return pid

    def require_repeated(self) -> None:
        """Each killed task was called again, in another process; it left nothing behind."""
        assert [name for name, *_ in self.killed] == list(self.rounds)
        for name, which, pid, partial_file in self.killed:
            text = (self.folder / f"calls-{name}").read_text()
            calls = [line.split() for line in text.splitlines()]
            processes = [int(process) for task, process in calls if task == which]
            assert processes[0] == pid
            assert len(processes) >= 2
            assert pid not in processes[1:]
            assert not partial_file.exists()
