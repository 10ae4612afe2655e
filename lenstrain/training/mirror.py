"""A run in two places: what its folder gets is sent to a store too; a new machine goes on from it.

    home = find_home("s3://bucket/runs/a", None)     or a folder, and ``train.checkpoint_copy``
    fetch_newer(home)                                --resume: what the store has beyond the folder
    mirror = Mirror(home); mirror.begin(...); mirror.submit(names, step); mirror.finish(...)

Objects are replaced one by one, and a machine can be gone between any two of them. So they are sent
in an order in which every moment is a run to go on with: records first, then checkpoints by age,
``last.pt`` at the end. Each checkpoint is a whole state; `fetch_newer` goes on from the newest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import secrets
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from lensprep.errors import (
    ChangedError,
    CheckpointError,
    ConfigError,
    NotFoundError,
    StorageError,
)
from lensprep.store import (
    PART_BYTES,
    WAKE_SECONDS,
    Entry,
    RemoteStore,
    S3Options,
    Store,
    abort_unfinished,
    download_file,
    is_remote,
    local_path,
    member_path,
    open_remote,
    open_store,
    upload_parts,
    write_atomic,
)
from lensprep.store.interrupts import grace
from lenstrain.training.checkpoint import (
    LAST,
    MOST_BYTES,
    PREVIOUS,
    LostCheckpointError,
    link,
    load_checkpoint,
    load_latest,
)
from lenstrain.training.run import CHECKPOINTS
from lenstrain.training.runlog import (
    CONFIG,
    ENVIRONMENT,
    INTERRUPTED,
    METRICS,
    NONFINITE,
    TENSORBOARD,
)

logger = logging.getLogger("lenstrain.mirror")

RECORDS: Final = (CONFIG, ENVIRONMENT, METRICS)
NOTES: Final = (NONFINITE, INTERRUPTED)
LAST_NAME: Final = f"{CHECKPOINTS}/{LAST}"
WRITER: Final = "writer.json"
"""Which start of the run sends to this place: the latest one, and it alone."""
FETCHED: Final = ".fetched"
"""Folder in the run folder of what arrives, until all has."""
RUNS_VARIABLE: Final = "LENSTRAIN_RUNS"
"""Environment variable: where working folders of runs in a store are made."""

TICK_SECONDS: Final = 60.0
"""Between two looks at metrics.jsonl, and two tries of a store that is away."""
HURRY_SECONDS: Final = 20.0
"""What a signal leaves to the last copy: torchrun kills 30 s after it, a spot machine has 120."""
AWAY_SECONDS: Final = 5.0
"""The same where the last try has failed."""
PAUSES: Final = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Before each further try at the end of a run whose only home is a store."""
GROWTH: Final = 1.1
"""TensorBoard's files are sent whole, each time that they have grown by a tenth."""
PATIENCE: Final = S3Options(attempts=3, read_timeout_s=10.0)
"""A store that is away is known within seconds; this module tries again by itself."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a run lives."""

    folder: Path
    """Written first, and read."""
    uri: str | None = None
    """Where all of it is sent; None for a run of one place."""
    is_output: bool = False
    """Whether the run was asked for there, and the folder is only worked in."""

    @property
    def name(self) -> str:
        """What a user calls the run."""
        return str(self.uri) if self.is_output else str(self.folder)


def find_home(out: str | os.PathLike[str], copy: str | None) -> Home:
    """Places of a run.

    Parameters
    ----------
    out : str or path
        What the user named: a folder or ``s3://``.
    copy : str or None
        ``train.checkpoint_copy``.

    Raises
    ------
    ConfigError
        If both name a store, and not the same.
    StorageError
        If a location is none, or no disk has room for a working folder.
    """
    if not is_remote(out):
        return Home(local_path(out), copy)
    uri = open_store(out).uri
    if copy is not None and open_store(copy).uri != uri:
        raise ConfigError(
            f"train.checkpoint_copy = {copy!r}, but the run itself is in a store, {uri}. Leave the "
            "key out."
        )
    return Home(working_folder(uri), uri, is_output=True)


def working_folder(uri: str) -> Path:
    """Folder of this machine in which a run in a store is worked; its name follows from the URI.

    Below ``$LENSTRAIN_RUNS``, or the user's cache folder, or that of temporary files: the first
    that can be written.

    Raises
    ------
    StorageError
        If none can.
    """
    store = open_remote(uri)
    # Two stores may have buckets of one name.
    place = f"{store.endpoint}|{store.uri}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    name = f"{store.uri.rsplit('/', 1)[-1][:80]}-{digest}"
    named = os.path.abspath(os.environ[RUNS_VARIABLE]) if os.environ.get(RUNS_VARIABLE) else None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    shared = Path(tempfile.gettempdir(), f"lenstrain-{os.getuid()}")
    for base in [Path(named)] if named else [Path(cache, "lenstrain"), shared]:
        if not base.is_absolute():  # a home that nobody knows
            continue
        with suppress(OSError):
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Anybody may have made a folder of that name among the temporary ones.
            if base != shared or base.lstat().st_uid == os.getuid():
                tempfile.TemporaryFile(dir=base).close()
                return base / "runs" / name
    raise StorageError(
        f"{uri} needs a folder on this machine to work in, and none can be written. Name one in "
        f"the variable {RUNS_VARIABLE}."
    )


def check_free(home: Home) -> None:
    """Refuse to send a new run over another one.

    Raises
    ------
    StorageError
        If there is one, or, where the run was asked for there, anything else; or if that store
        does not answer. Of a copy's store that is a warning only.
    """
    assert home.uri is not None
    try:
        store: Any = open_store(home.uri)
        taken = (
            store.has_any()
            if home.is_output
            else any(store.has(name) for name in (CONFIG, WRITER, LAST_NAME))
        )
    except StorageError as error:
        if home.is_output:
            raise
        warnings.warn(f"{home.uri} cannot be looked at: {error} The training begins.", stacklevel=2)
        return
    if taken and home.is_output:
        raise StorageError(
            f"{home.uri} exists and is not empty. Name another folder, or go on with --resume."
        )
    if taken:
        raise StorageError(
            f"{home.uri} holds the checkpoints of another run. Name another "
            "train.checkpoint_copy, or go on with that run: --resume and a run folder that does "
            "not exist."
        )


def fetch_newer(home: Home) -> None:
    """Bring the run folder to what the store holds, if that is further; in the main process only.

    Each checkpoint there is a whole state of the run: it goes on from the newest that can be read.

    Raises
    ------
    StorageError
        If the store does not answer and this machine has nothing: the run is not begun again in
        silence. Also where the run was asked for there.
    CheckpointError
        If there are checkpoints and none can be read.
    """
    folder, uri = home.folder, home.uri
    assert uri is not None
    here = _step(folder)
    if here is None and not home.is_output and _is_foreign(folder):
        return
    try:
        store = open_store(uri)
        everything = store.entries()
        entries = [entry for entry in everything if _belongs(entry.name)]
        names = {entry.name for entry in entries}
        begun = any(_is_checkpoint(name) for name in names)
        if CONFIG not in names and (begun or (home.is_output and everything)):
            raise StorageError(f"{uri} is not the folder of a run (it has no {CONFIG}).")
        if not begun:
            return
        if here is not None and _is_sent_from(folder, store):
            return
        draft = folder / FETCHED
        shutil.rmtree(draft, ignore_errors=True)
        _fetch(store, entries, draft)
    except StorageError as error:
        if home.is_output or here is None:
            raise
        told = f"{uri} cannot be read: {error} Going on from {folder}, step {here}."
        warnings.warn(told, stacklevel=2)
        return
    newest, there = _newest(draft / CHECKPOINTS, uri)
    if here is not None and here >= there:
        warnings.warn(
            f"{folder} is at step {here}, and {uri}, which another start wrote, at step {there}: "
            "going on from the folder.",
            stacklevel=2,
        )
    else:
        if newest.name != LAST:
            link(newest, draft / LAST_NAME)
        _take_over(folder, draft, names | {LAST_NAME})
        warnings.warn(f"{folder} was fetched from {uri}, step {there}.", stacklevel=2)
    shutil.rmtree(draft, ignore_errors=True)


def _step(folder: Path) -> int | None:
    """Step of the newest checkpoint of a run folder that can be read."""
    if not (folder / CONFIG).exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `find_state` reads it again, and tells
            return int(load_latest(folder / CHECKPOINTS).content["step"])
    except LostCheckpointError:
        return None


def _is_foreign(folder: Path) -> bool:
    """Whether a place is taken by something that is no run, which stays as it is."""
    if not folder.is_dir():
        return folder.exists()
    return not (folder / CONFIG).exists() and any(p.name != FETCHED for p in folder.iterdir())


def _is_sent_from(folder: Path, store: Store) -> bool:
    """Whether all that the store holds came from this folder, which therefore is not behind."""
    try:
        return (folder / WRITER).read_bytes() == bytes(store.read(WRITER))
    except (OSError, NotFoundError):
        return False


def _belongs(name: str) -> bool:
    events = name.startswith(f"{TENSORBOARD}/") and name.count("/") == 1
    return name in (*RECORDS, *NOTES) or events or _is_checkpoint(name)


def _is_checkpoint(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder == CHECKPOINTS and file.endswith(".pt") and file != PREVIOUS


def _fetch(store: Store, entries: list[Entry], draft: Path) -> None:
    """Fetch files; those of one size and version, such as last.pt and best.pt, only once."""
    arrived: dict[tuple[int, str], Path] = {}
    for entry in entries:
        path = member_path(draft, entry.name)
        same = (entry.bytes, entry.version or entry.name)
        if entry.bytes > MOST_BYTES:
            raise StorageError(f"{store.uri}/{entry.name} has {entry.bytes:,} bytes; is it ours?")
        if same in arrived:
            path.parent.mkdir(parents=True, exist_ok=True)
            link(arrived[same], path)
        elif isinstance(store, RemoteStore):
            download_file(store, entry.name, path, size=entry.bytes, sha256=None)
        else:
            write_atomic(path, bytes(store.read(entry.name)))
        arrived.setdefault(same, path)


def _newest(folder: Path, uri: str) -> tuple[Path, int]:
    """The checkpoint of the highest step, last.pt first among equals."""
    found: list[tuple[int, bool, Path]] = []
    faults: list[str] = []
    for path in sorted(folder.glob("*.pt")):
        try:
            found.append((int(load_checkpoint(path)["step"]), path.name == LAST, path))
        except CheckpointError as error:
            fault = str(error).replace(str(folder), f"{uri}/{CHECKPOINTS}")
            if path.name == LAST and not isinstance(error, LostCheckpointError):
                raise CheckpointError(fault) from None  # it is whole, and may be the newest state
            faults.append(fault)
    if not found:
        raise CheckpointError(faults[0])
    for fault in faults:
        warnings.warn(fault, stacklevel=3)
    step, _, path = max(found)
    return path, step


def _take_over(folder: Path, draft: Path, names: set[str]) -> None:
    """Move files into the run folder, last.pt at the end; what else is there stays."""
    for name in sorted(names, key=lambda name: (name not in RECORDS, name == LAST_NAME)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (draft / name).replace(target)


class TakenError(StorageError):
    """Another start of the run sends to the place now."""


class Mirror:
    """Sends what a run folder gets to a store, in a thread of its own, the newest content only.

    Files are opened when they are submitted. Checkpoints are replaced by renaming, so that an open
    one stays what it was.

    Parameters
    ----------
    home : Home
        With a URI.
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
        """See that the store can be written, and have no other start send to it from now on.

        Parameters
        ----------
        new : bool
            Whether nobody may have begun there before.

        Raises
        ------
        StorageError
            If the store refuses, and the run was asked for there; a copy's is tried again later.
        """
        self._new = new
        if self.is_output:
            self._open()

    def begin(self, step: int) -> None:
        """Begin to send: the records, and the checkpoints that are in the folder already.

        Parameters
        ----------
        step : int
            Of last.pt, if there is one.
        """
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
            If another start has taken the place that the run was asked for at.
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
                f"The run could not be copied to {self.uri}: {fault} The training goes on; "
                "it is tried again.",
                stacklevel=3,
            )

    def finish(self, hurry: Callable[[], bool], *, must: bool) -> None:
        """Send the last state; wait for it, but not for ever, and not long in a hurry.

        Parameters
        ----------
        hurry : callable
            Whether a signal has come. It leaves `HURRY_SECONDS`; a further Ctrl-C leaves none.
        must : bool
            Whether the run is over: then its place in a store must hold it.

        Raises
        ------
        StorageError
            If that place does not.
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
            f"{self.uri} does not have the last state of the run{reason}: it holds {held}, and "
            f"{self.folder} all. The same command with --resume sends it."
        )
        if must and self.is_output:
            raise StorageError(text)
        warnings.warn(text, stacklevel=2)

    def _try_again(self, hurry: Callable[[], bool]) -> bool:
        """Send what waits; whether it was sent in time."""
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
        """End the thread; what it has not sent is not waited for."""
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
        """Send records and checkpoints; each is taken out of the batch when it is there."""
        store = self._open()
        self._send_records(store, RECORDS)
        for name, (file, step) in list(batch.items()):
            if name == LAST_NAME:
                self._require_place(store)
            _put(store, name, file)
            batch.pop(name)[0].close()
            if name == LAST_NAME:
                self._held = step
        self._send_records(store, NOTES)
        events = (self.folder / TENSORBOARD).glob("*")
        self._send_records(store, sorted(f"{TENSORBOARD}/{path.name}" for path in events))

    def _open(self) -> Store:
        """The store, which no other start of the run sends to."""
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
            with suppress(StorageError):  # to see them takes a right that not everybody has
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
        except NotFoundError:  # somebody has cleared the place
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
                _put(store, name, file)
                self._sent[name] = now
                self._there.add(name)


def _told_by(mark: bytes) -> str:
    try:
        other = json.loads(mark)
        return f"belongs to a later start of the run, on {other['host']} since {other['since']}"
    except (ValueError, KeyError, TypeError):
        return "belongs to another start of the run"


def _put(store: Store, name: str, file: BinaryIO) -> None:
    """Write an open file into a store, in place of an older one."""
    file.seek(0)
    if not isinstance(store, RemoteStore):
        store.write(name, file.read())
        return
    size = os.fstat(file.fileno()).st_size
    # metrics.jsonl and TensorBoard's files grow while they are read.
    sizes = (min(PART_BYTES, size - start) for start in range(0, max(size, 1), PART_BYTES))
    upload_parts(store, name, map(partial(file.read), sizes), size)
