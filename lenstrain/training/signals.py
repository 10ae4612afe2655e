"""Signals to stop (a spot instance's SIGTERM, a Ctrl-C), held until a step has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from lensprep.store.interrupts import grace

SAVE_SECONDS: Final = 25.0
"""Time from a signal to the end of a training that cannot save: torchrun kills after 30 s."""


class StopWaitingError(KeyboardInterrupt):
    """A signal came while the program was only waiting for data."""


@dataclass(slots=True)
class StopSignals:
    """What has arrived so far."""

    received: int | None = None
    """Number of the first signal, or None."""
    breaks: bool = False
    """A signal ends the wait."""

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Let a signal end the block, which only waits for data."""
        self.breaks = True
        try:
            if self.received is not None:
                raise StopWaitingError
            yield
        finally:
            self.breaks = False


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Note SIGTERM and SIGINT inside the block instead of dying; a second SIGINT interrupts.

    Only a main thread can do so; in another one nothing is noted. A step that does not end within
    `SAVE_SECONDS` is not waited for: the run resumes from the last checkpoint.
    """
    state = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and state.received is not None:
            raise KeyboardInterrupt
        state.received = state.received or number
        if state.breaks:
            state.breaks = False
            raise StopWaitingError

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    advice = "No step ended in time to save; --resume continues from the last checkpoint, or anew."
    try:
        with grace(SAVE_SECONDS, advice, keeps_state=True):
            yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
