"""The one decorator of all compiled kernels.

A kernel is compiled at its first call and its machine code kept beside the module, or, where
site-packages is read-only, in the user's cache folder. ``NUMBA_CACHE_DIR`` names another folder
(Spark and Dask executors often need it). Where nothing can be written, or read, the kernels still
work, and are compiled anew, up to a minute, in every process.

Nobody should wait for that in silence: a process that compiles for more than a second says so,
once, through the logger ``lensprep.kernel``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from numba import config, njit
from numba.core import event
from numba.core.caching import FunctionCache

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 1.0
"""Seconds of compiling that need no word."""


class _Kept(FunctionCache):
    """Machine code on disk; that it cannot be read or written is no fault of the kernel."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load machine code; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # cut by a crash, or not ours to read: pickle raises whatever it likes
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save machine code, if the disk takes it."""
        with suppress(OSError):
            super().save_overload(sig, data)


class Notice(event.Listener):
    """Says once in a process that it compiles, when that has taken a second.

    numba broadcasts the start and the end of each compilation, also of kernels that other ones
    call, so a kernel that takes long is announced while it is compiled. What is loaded is not
    broadcast.
    """

    def __init__(self) -> None:
        self.tell: Callable[[], None] = self.say
        """Called when a second has passed, and perhaps again; workers tell their driver."""
        self.kept = True
        """Whether all machine code has a folder to be kept in."""
        self._spent = 0.0
        self._begun: list[float] = []
        self._said = False

    def say(self) -> None:
        """Log it, the first time."""
        if not self._said:
            self._said = True
            logger.info(
                "Compiling for this machine: up to a minute, %s.",
                "this once" if self.kept else "at every start: NUMBA_CACHE_DIR can name a folder",
            )

    def on_start(self, event: Any) -> None:
        """Count the time from here."""
        self._begun.append(time.monotonic())
        self._look()

    def on_end(self, event: Any) -> None:
        """Count the time to here."""
        self._look()
        begun = self._begun.pop()
        if not self._begun:
            self._spent += time.monotonic() - begun

    def _look(self) -> None:
        if self._spent + time.monotonic() - self._begun[0] > _PATIENCE_S:
            self.tell()


notice: Final = Notice()
event.register("numba:compile", notice)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`: without the GIL, IEEE arithmetic (no fast-math), division as in NumPy.

    Call other kernels of the same file only: the kept machine code is renewed when its own file
    changes, not when another one does.
    """
    compiled: Any = njit(nogil=True, error_model="numpy")(function)
    if hasattr(compiled, "enable_caching"):  # else NUMBA_DISABLE_JIT is set: it is `function`
        try:
            _require_place(function)
            compiled._cache = _Kept(function)  # as `enable_caching` does, with another class
        except RuntimeError:  # numba found no folder that it may write to
            notice.kept = False
    return cast(Callable[..., Any], compiled)


def _require_place(function: Callable[..., Any]) -> None:
    """Keep numba from making a folder named ``~`` where we stand, as it does without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~")
    beside = os.access(os.path.dirname(function.__code__.co_filename), os.W_OK)
    if not (beside or os.path.isabs(cache) or config.CACHE_DIR):
        raise RuntimeError("no folder can be written to")
