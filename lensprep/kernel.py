"""The one decorator of all compiled kernels.

A kernel is compiled at its first call and its machine code cached next to the module or, if
site-packages is read-only, in the user's cache folder. ``NUMBA_CACHE_DIR`` names another folder
(Spark and Dask executors often need it). Without a usable folder the kernels still work, but every
process compiles them again, for up to a minute.

A process that compiles for more than a second logs so once, to ``lensprep.kernel``.
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
"""Seconds of compiling that are not reported."""


class _Kept(FunctionCache):
    """Machine code on disk; failures to read or write it are ignored."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load machine code; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # cut by a crash, or not readable: pickle raises anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save machine code, if the disk takes it."""
        with suppress(OSError):
            super().save_overload(sig, data)


class Notice(event.Listener):
    """Reports once per process that it compiles, after a second of compiling.

    numba announces the start and the end of each compilation, nested ones too, so a slow kernel is
    reported while it is compiled. Loading from the cache is not announced.
    """

    def __init__(self) -> None:
        self.tell: Callable[[], None] = self.say
        """Called after a second, and perhaps again; workers report to their driver."""
        self.kept = True
        """Whether all machine code can be cached in a folder."""
        self._spent = 0.0
        self._begun: list[float] = []
        self._said = False

    def say(self) -> None:
        """Log it, the first time."""
        if not self._said:
            self._said = True
            logger.info(
                "Compiling for this machine: up to a minute, %s.",
                "kept for next time"
                if self.kept
                else "at every start: NUMBA_CACHE_DIR can name a folder",
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

    Call other kernels of the same file only: cached machine code is renewed when its own file
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
    """Keep numba from making a folder named ``~`` in the current one, as it does without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~")
    beside = os.access(os.path.dirname(function.__code__.co_filename), os.W_OK)
    if not (beside or os.path.isabs(cache) or config.CACHE_DIR):
        raise RuntimeError("no folder can be written to")
