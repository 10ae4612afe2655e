"""An object store: whether it lists, writes, reads and removes, each tried on one small object."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from lensprep.errors import StorageError
from lensprep.store import S3Options, open_remote

TRIAL_PREFIX: Final = "lensprep-doctor-"
"""What the name of the object begins with that is written and removed."""
_ATTEMPTS: Final = 2
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One thing that was asked of a store."""

    name: str
    """``list``, ``write``, ``read`` or ``delete``."""
    ok: bool
    seconds: float
    error: str | None = None
    """In one line, with what to do."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def try_store(
    uri: str, options: S3Options | None = None, *, write: bool, name: str = ""
) -> list[Trial]:
    """Ask a store for everything that the programs need of it.

    Parameters
    ----------
    uri : str
        ``s3://bucket/folder``.
    options : S3Options, optional
        How to reach it.
    write : bool
        Write an object of a new name into the folder, read it and remove it. Otherwise the folder
        is only listed, and the object `name` read. No other object is written or removed.
    name : str
        Of an object to be read if nothing is written; none is if it is empty.

    Returns
    -------
    list of Trial
        In the order in which they were made. An object that could not be written is not read.

    Raises
    ------
    ConfigError, StorageError
        If the location is none of a store, or its client cannot be made.
    """
    hasty = replace(options or S3Options(), attempts=_ATTEMPTS, read_timeout_s=_PATIENCE_S)
    store, trials = open_remote(uri, hasty), list[Trial]()

    def attempt(what: str, action: Callable[[], object]) -> bool:
        start = time.perf_counter()
        try:
            action()
        except StorageError as error:
            spent = time.perf_counter() - start
            trials.append(Trial(name=what, ok=False, seconds=spent, error=str(error)))
            return False
        trials.append(Trial(name=what, ok=True, seconds=time.perf_counter() - start))
        return True

    listed = attempt("list", store.has_any)
    if not write:
        if name:
            attempt("read", lambda: store.read_range(name, 0, 1))
        return trials
    mine, content = f"{TRIAL_PREFIX}{uuid.uuid4().hex}", os.urandom(1024)

    def read() -> None:
        if store.read(mine) != content:
            raise StorageError(f"{store.locate(mine)} was read back with other content.")

    def remove() -> None:
        store.delete(mine)
        # Who may not list is not told whether an object is there.
        if listed and store.has(mine):
            raise StorageError(f"{store.locate(mine)} is still there after it was removed.")

    try:
        # With the condition that nothing is there, as the programs write what must not be lost.
        if attempt("write", lambda: store.create(mine, content)):
            attempt("read", read)
            attempt("delete", remove)
            return trials
    except BaseException:
        with suppress(StorageError):
            store.delete(mine)
        raise
    with suppress(StorageError):  # the answer may have been lost, and not the object
        store.delete(mine)
    return trials
