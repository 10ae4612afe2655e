"""Being told to stop: a spot instance's SIGTERM or a Ctrl-C, kept until a step has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopSignals:
    """What has arrived so far."""

    received: int | None = None
    """Number of the first signal, or None."""


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Note SIGTERM and SIGINT inside the block instead of dying; a second SIGINT interrupts.

    Only a main thread can do so; in another one nothing is noted.
    """
    state = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and state.received is not None:
            raise KeyboardInterrupt
        state.received = state.received or number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
