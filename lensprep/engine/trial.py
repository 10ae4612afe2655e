"""Work that may kill whoever does it, tried in a process of its own.

    fatal = find_fatal(function, items)

A compiled library that meets bytes it was not made for, or a task that wants more memory than
there is, ends its process without a word. What was in hand then is tried here, one after the
other; what kills a process that has done nothing else is to blame, and the rest is not.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

Item = TypeVar("Item")

_ASKED_TO_END: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals of whoever wants a process to end: nothing that it did is to blame."""


def find_fatal(function: Callable[[Item], object], items: Sequence[Item]) -> list[Item]:
    """Items that kill a process in which nothing was done before.

    Parameters
    ----------
    function : callable
        A module-level function of one item, or a `functools.partial` of one. What it returns or
        raises is dropped.
    items : sequence
    """
    fatal: list[Item] = []
    left = list(items)
    while left:
        begun, died = _try(function, left)
        if not (died and begun):
            break
        if begun == 1:
            fatal.append(left[0])
        # One that others were done before is tried again, as the first.
        left = left[max(1, begun - 1) :]
    return fatal


def _try(function: Callable[[Any], object], items: Sequence[Any]) -> tuple[int, bool]:
    """How many items were begun, and whether the process died of one."""
    paths = [os.environ.get("PYTHONPATH"), *sys.path]  # of a Spark executor more than it began with
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=pickle.dumps((function, items)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=False,
    )
    return len(done.stdout), -done.returncode in set(signal.Signals) - _ASKED_TO_END


def main() -> None:
    """Do what stdin says, and say with a dot on stdout that an item is begun."""
    function, items = pickle.load(sys.stdin.buffer)  # of the process that started this one
    told = os.dup(1)
    os.dup2(2, 1)  # so that nobody else's words are taken for a dot
    for item in items:
        os.write(told, b".")
        with suppress(Exception):
            function(item)
