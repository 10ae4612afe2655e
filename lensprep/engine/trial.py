"""Work that may kill its process, tried in a separate process.

    fatal = find_fatal(function, items)

A compiled library that meets bytes it was not made for, or a task that needs more memory than
there is, ends its process without a message. The items that the process was working on are then
tried here, one after the other; an item that kills a process which did nothing else is to blame.
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
"""Signals that ask a process to end: no item is to blame."""


def find_fatal(function: Callable[[Item], object], items: Sequence[Item]) -> list[Item]:
    """Items that kill a process which did nothing before.

    ``function`` is a module-level function of one item, or a `functools.partial` of one; what it
    returns or raises is ignored.
    """
    fatal: list[Item] = []
    left = list(items)
    while left:
        begun, died = _try(function, left)
        if not (died and begun):
            break
        if begun == 1:
            fatal.append(left[0])
        # An item that followed others is tried again, as the first one.
        left = left[max(1, begun - 1) :]
    return fatal


def _try(function: Callable[[Any], object], items: Sequence[Any]) -> tuple[int, bool]:
    """How many items were begun, and whether the process died of one."""
    paths = [os.environ.get("PYTHONPATH"), *sys.path]  # a Spark executor adds to its initial path
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
    """Do the work that stdin describes, and write a dot to stdout before each item."""
    function, items = pickle.load(sys.stdin.buffer)  # from the process that started this one
    dots = os.dup(1)
    os.dup2(2, 1)  # so that no other output is taken for a dot
    for item in items:
        os.write(dots, b".")
        with suppress(Exception):
            function(item)
