"""A run in two locations: its folder is also copied to a store, where a new machine can resume it.

    mirror = Mirror(home); mirror.begin(...); mirror.submit(names, step); mirror.finish(...)

Objects are replaced one by one, and the machine can vanish between any two of them. So they are
sent in an order that leaves a resumable run at every moment: records first, then checkpoints by
age, ``last.pt`` at the end. `lenstrain.training.home` finds the store and resumes from the newest.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO, Final

from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store import (
    WAKE_SECONDS,
    RemoteStore,
    S3Options,
    Store,
    is_remote,
    open_store,
    write_atomic,
)
from lensprep.store.files import send_open_file
from lensprep.store.interrupts import grace
from lensprep.store.transfer import abort_unfinished
from lenstrain.training.checkpoint import LAST
from lenstrain.training.home import LAST_NAME, NOTES, RECORDS, WRITER, Home
from lenstrain.training.runlog import CHECKPOINTS, TENSORBOARD

logger = logging.getLogger("lenstrain.mirror")

TICK_SECONDS: Final = 60.0
"""Between two looks at metrics.jsonl, and two tries of a store that is away."""
HURRY_SECONDS: Final = 20.0
"""Time for the last copy after a signal: torchrun kills 30 s after it, a spot machine has 120."""
AWAY_SECONDS: Final = 5.0
"""The same if the previous try failed."""
PAUSES: Final = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Before each further try at the end of a run whose only home is a store."""
GROWTH: Final = 1.1
"""TensorBoard's files are sent whole, whenever they have grown by a tenth."""
PATIENCE: Final = S3Options(attempts=3, read_timeout_s=10.0)
"""An unreachable store is noticed within seconds; this module retries by itself."""


class TakenError(StorageError):
    """Another start of the run now sends to the same store."""


class Mirror:
    """Copies a run folder to the store of its `Home` in a background thread, newest content only.

    Files are opened when they are submitted. Checkpoints are replaced by renaming, so that an open
    one keeps its content.
    """

    def __init__(self, home: Home) -> None:
        assert home.uri is not None
        self.folder, self.uri, self.is_output = home.folder, home.uri, home.is_output
        self._mark = json.dumps({
            "start": secrets.token_hex(8),
            "host": platform.node(),
            "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }).encode()  # fmt: skip
        self._new = True
        self._store: Store | None = None
        self._sent: dict[str, tuple[int, int]] = {}
        """Size and time of change of records as they were sent."""
        self._there: set[str] = set()
        self._held: int | None = None
        """Step of the last.pt that was sent."""
        self._waiting: dict[str, tuple[BinaryIO, int]] = {}
        """Checkpoints to be sent with their steps, the oldest first."""
        self._asked = self._busy = self._final = self._ended = False
        self._fault: Exception | None = None
        """Why the last try failed."""
        self._told = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def take_place(self, *, new: bool) -> None:
        """Claim the store for this start of the run; with ``new``, nobody may have begun there.

        Raises
        ------
        StorageError
            If the store refuses, and the run was asked for there; a copy is retried later.
        """
        self._new = new
        if self.is_output:
            self._open()

    def begin(self, step: int) -> None:
        """Begin to send: records, and checkpoints already there; ``step`` is that of last.pt."""
        self._thread.start()
        best = (self.folder / CHECKPOINTS).glob("best*.pt")
        names = [path.name for path in sorted(best, key=lambda path: path.stat().st_mtime)]
        names += [LAST] if (self.folder / LAST_NAME).exists() else []
        self.submit(names, step)

    def submit(self, names: list[str], step: int) -> None:
        """Ask for copies of checkpoints, in this order, and of the records; returns at once.

        Raises
        ------
        TakenError
            If the run itself is in the store, and another start has claimed it.
        """
        opened = {f"{CHECKPOINTS}/{name}": (self.folder / CHECKPOINTS / name).open("rb")
                  for name in names}  # fmt: skip
        with self._changed:
            for name, file in opened.items():
                if name in self._waiting:
                    self._waiting.pop(name)[0].close()
                self._waiting[name] = file, step
            self._asked = True
            self._changed.notify_all()
            fault, told = self._fault, self._told
            self._told = fault is not None
        if isinstance(fault, TakenError) and self.is_output:
            raise fault
        if fault is not None and not told:
            warnings.warn(
                f"The run could not be copied to {self.uri}: {fault} Training continues, and "
                "copying will be retried.",
                stacklevel=3,
            )

    def finish(self, hurry: Callable[[], bool], *, must: bool) -> None:
        """Send the last state and wait for it, though not for ever.

        Parameters
        ----------
        hurry : callable
            Whether a signal has come: `HURRY_SECONDS` are left then; none after another Ctrl-C.
        must : bool
            Whether the run is over: a store that is its only home must then hold it.

        Raises
        ------
        StorageError
            If that store does not.
        """
        advice = f"{self.uri} may lack the last state; {self.folder} has it."
        with suppress(KeyboardInterrupt), grace(HURRY_SECONDS + 5, advice, keeps_state=True):
            for pause in (0.0, *(PAUSES if must and self.is_output else ())):
                until = time.monotonic() + pause
                while time.monotonic() < until and not hurry():
                    time.sleep(WAKE_SECONDS)
                done = self._try_again(hurry)
                if done or hurry() or isinstance(self._fault, TakenError):
                    break
        with self._changed:
            behind = bool(self._fault or self._waiting or self._busy)
            reason = f" ({self._fault})" if self._fault else ""
        if not behind:
            return
        held = "an earlier one" if LAST_NAME in self._there else "none"
        held = held if self._held is None else f"that of step {self._held}"
        text = (
            f"{self.uri} does not have the last state of the run{reason}: it holds {held}; "
            f"{self.folder} holds everything. The same command with --resume sends it."
        )
        if must and self.is_output:
            raise StorageError(text)
        warnings.warn(text, stacklevel=2)

    def _try_again(self, hurry: Callable[[], bool]) -> bool:
        """Send what waits; returns whether it was sent in time."""
        deadline = math.inf
        with self._changed:
            was_away = self._fault is not None
            self._final = self._asked = True
            self._changed.notify_all()
        while True:
            if hurry() and deadline == math.inf:
                deadline = time.monotonic() + (AWAY_SECONDS if was_away else HURRY_SECONDS)
            with self._changed:
                if self._changed.wait_for(lambda: not (self._asked or self._busy), WAKE_SECONDS):
                    return self._fault is None
            if time.monotonic() > deadline:
                return False

    def close(self) -> None:
        """End the thread without waiting for what it has not sent."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(WAKE_SECONDS)
        if self._busy and isinstance(self._store, RemoteStore):
            self._store.connection.stop()  # or the end of the program waits for all its parts

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._asked or self._ended, TICK_SECONDS)
                if self._ended:
                    for file, _ in self._waiting.values():
                        file.close()
                    return
                self._asked, self._busy = False, True
                batch, self._waiting = self._waiting, {}
            fault: Exception | None = None
            try:
                if isinstance(self._fault, TakenError):
                    raise self._fault
                self._send(batch)
            except Exception as error:  # a thread that ended would be waited for
                fault = error
            with self._changed:
                self._fault = fault
                newer = self._waiting
                for name in batch.keys() & newer.keys():
                    batch.pop(name)[0].close()
                self._waiting = batch | newer

    def _send(self, batch: dict[str, tuple[BinaryIO, int]]) -> None:
        """Send records and checkpoints; each leaves the batch once the store has it."""
        store = self._open()
        self._send_records(store, RECORDS)
        for name, (file, step) in list(batch.items()):
            if name == LAST_NAME:
                self._require_place(store)
            send_open_file(store, file, name)
            batch.pop(name)[0].close()
            if name == LAST_NAME:
                self._held = step
        self._send_records(store, NOTES)
        events = (self.folder / TENSORBOARD).glob("*")
        self._send_records(store, sorted(f"{TENSORBOARD}/{path.name}" for path in events))

    def _open(self) -> Store:
        """The store, claimed for this start of the run."""
        if self._store is not None:
            self._require_place(self._store)
            return self._store
        store = open_store(self.uri, PATIENCE if is_remote(self.uri) else None)
        if self._new:
            try:
                store.create(WRITER, self._mark)
            except ChangedError:
                raise TakenError(f"{self.uri}: another run has just begun there.") from None
        else:
            store.write(WRITER, self._mark)
        write_atomic(self.folder / WRITER, self._mark)
        if isinstance(store, RemoteStore):
            with suppress(StorageError):  # listing them takes a right that not everybody has
                abort_unfinished(store)
        for entry in store.entries():
            self._there.add(entry.name)
            if entry.name.startswith(f"{TENSORBOARD}/"):
                self._sent[entry.name] = entry.bytes, 0
        self._store = store
        return store

    def _require_place(self, store: Store) -> None:
        try:
            mark = bytes(store.read(WRITER))
        except NotFoundError:  # somebody has emptied the store
            self._sent, self._there = {}, set()
            store.write(WRITER, self._mark)
            return
        if mark != self._mark:
            raise TakenError(f"{self.uri} {_told_by(mark)}; nothing more is sent there from here.")

    def _send_records(self, store: Store, names: Iterable[str]) -> None:
        """Send what has changed, and remove notes of an earlier end."""
        for name in names:
            path = self.folder / name
            try:
                file = path.open("rb")
            except FileNotFoundError:
                if name in NOTES and name in self._there:
                    store.delete(name)
                    self._there.discard(name)
                continue
            with file:
                status = os.fstat(file.fileno())
                before = self._sent.get(name, (0, 0))
                now = status.st_size, status.st_mtime_ns
                if name.startswith(f"{TENSORBOARD}/"):
                    grown = now[0] > before[0] * (1 if self._final else GROWTH)
                    if not grown:
                        continue
                elif now == before:
                    continue
                send_open_file(store, file, name)
                self._sent[name] = now
                self._there.add(name)


def _told_by(mark: bytes) -> str:
    try:
        other = json.loads(mark)
        return f"belongs to a later start of the run, on {other['host']} since {other['since']}"
    except (ValueError, KeyError, TypeError):
        return "belongs to another start of the run"
