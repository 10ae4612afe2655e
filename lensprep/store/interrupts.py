"""Signals: they end a program cleanly if that is quick, and quickly in any case.

    with interruptible(SIGINT, SIGTERM):   a signal raises KeyboardInterrupt; nothing is retried
    Watchdog.start()                       a program that does not react to its signal is ended
    with grace(25.0, "What is kept ..."):  ... later, in a block that has something to save

Python runs signal handlers in the main thread, between two bytecode instructions: not while that
thread is in compiled code, which may take minutes (a training step, a kernel, a database lock). But
C code writes the signal's number into a socket at once (`signal.set_wakeup_fd`), where a thread
waits. Only code that never releases the GIL would stop this thread too; the long calls here (torch,
numba with ``nogil``, pyarrow, zlib, sqlite, sockets) release it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import ClassVar, Final, NoReturn

from lensprep.store.connection import stop_retries

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it, or SIGTERM."""
PREEMPTED: Final = 75
"""Exit status after SIGTERM if the state was kept: start again with --resume (EX_TEMPFAIL)."""
GRACE_SECONDS: Final = 8.0
"""Time from a signal to the end of a program without state to keep: Docker kills after 10 s."""
_AGAIN_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 1.0
"""After which a person is told that the signal was heard."""
"""The same after a second signal."""
_SHOW_CURSOR: Final = "\x1b[?25h"


def killed_by(status: int) -> str:
    """Name of the signal that ended a process, from its `subprocess` exit status (-9: SIGKILL)."""
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"{name}: out of memory?" if status == -signal.SIGKILL else name


@contextmanager
def interruptible(*numbers: int) -> Iterator[None]:
    """Let these signals raise KeyboardInterrupt inside the block, and stop retries under way.

    Otherwise a request might pause for a minute, while the interrupted code waits for its thread. A
    second signal has its default effect: it ends the process at once. Outside the main thread
    nothing is done, and an ignored signal stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for each in mine:
            signal.signal(each, signal.SIG_DFL)
        stop_retries()
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers if main}
    # None is a handler that was not set by Python, which Python cannot restore.
    mine = [n for n, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


@dataclass(frozen=True, slots=True)
class _Grace:
    """How long the main thread may continue after a signal; see `grace`."""

    seconds: float
    advice: str
    keeps_state: bool


class Watchdog:
    """A thread that ends the process if the main thread does not react to a signal in time."""

    active: ClassVar[Watchdog | None] = None
    """The one of this process; only our programs have one, not other users of the library."""

    def __init__(self) -> None:
        self._graces = [_Grace(GRACE_SECONDS, "", keeps_state=False)]
        self._received: int | None = None
        self._deadline: float | None = None
        self._tell: float | None = None
        self._lock = threading.Lock()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    @classmethod
    def start(cls) -> None:
        """Watch this process from now to its end; call it in the main thread of a program."""
        if cls.active is None:
            cls.active = cls()
            signal.set_wakeup_fd(cls.active._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=cls.active._watch, name="watchdog", daemon=True).start()

    def push(self, grace: _Grace) -> None:
        """Begin a block with its own grace."""
        with self._lock:
            self._read()
            self._graces.append(grace)
            self._restart()

    def pop(self, answered: bool) -> None:
        """End the block; a signal that it answered is forgotten."""
        with self._lock:
            self._read()
            self._graces.pop()
            if answered:
                self._received = None
            self._restart()

    def _restart(self) -> None:
        self._tell, waiting = None, self._received is not None
        self._deadline = time.monotonic() + self._graces[-1].seconds if waiting else None
        self._writer.send(b"\0")  # have the thread look at it

    def _watch(self) -> None:
        while True:
            tell, deadline = self._tell, self._deadline
            due = deadline if tell is None else tell
            left = None if due is None else max(due - time.monotonic(), 0.0)
            heard = select.select([self._reader], [], [], left)[0]
            with self._lock:
                self._read()
                if not heard and tell is not None and tell == self._tell:
                    self._say()
                elif not heard and deadline == self._deadline:
                    self._end()

    def _read(self) -> None:
        """Read the signals that have come (under the lock)."""
        with suppress(BlockingIOError):  # the other thread was first
            for number in self._reader.recv(4096):
                if number in (signal.SIGINT, signal.SIGTERM):
                    self._note(number)

    def _note(self, number: int) -> None:
        grace, now = self._graces[-1], time.monotonic()
        if self._received is None:
            self._received, self._deadline = number, now + grace.seconds
            self._tell = now + _TELL_SECONDS if grace.keeps_state else None
        elif number == signal.SIGINT or not grace.keeps_state:
            self._deadline = min(self._deadline or now, now + _AGAIN_SECONDS)

    def _say(self) -> None:
        self._tell = None
        again = "; Ctrl-C again does not wait" * (self._received == signal.SIGINT)
        bar = "\n" * os.isatty(2)
        text = f"Stopping: what is under way has {self._graces[-1].seconds:g} s to end{again}."
        os.write(2, f"{bar}{text}\n".encode())

    def _end(self) -> NoReturn:
        grace = self._graces[-1]
        text = f"Stopped in the middle of something that would not end. {grace.advice}".rstrip()
        cursor = _SHOW_CURSOR if os.isatty(2) else ""
        try:
            os.write(2, f"{cursor}{text}\n".encode())  # not sys.stderr: its lock may be held
        finally:
            preempted = grace.keeps_state and self._received == signal.SIGTERM
            os._exit(PREEMPTED if preempted else INTERRUPTED)


@contextmanager
def grace(seconds: float, advice: str = "", *, keeps_state: bool = False) -> Iterator[None]:
    """Give the block its own time to end after a signal, from the signal or the block's beginning.

    Without a `Watchdog`, or outside the main thread, nothing is done.

    Parameters
    ----------
    seconds : float
    advice : str
        Printed when the time is over: what is kept, and how to continue.
    keeps_state : bool
        The block handles the signal itself and keeps its state, so that the process may continue
        after it. SIGTERM then ends in `PREEMPTED`, and a second one does not shorten the time: some
        schedulers send it both to a launcher, which forwards it, and to its processes.
    """
    watchdog = Watchdog.active
    if watchdog is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watchdog.push(_Grace(seconds, advice, keeps_state))
    try:
        yield
    finally:
        watchdog.pop(answered=keeps_state)
