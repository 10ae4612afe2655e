"""Where a run lives, in a folder and in a store, and where a restart of it continues.

    home = find_home("s3://bucket/runs/a", None)     or a folder, and ``train.checkpoint_copy``
    check_free(home)                                 before a new run
    fetch_newer(home)                                --resume: what the store has beyond the folder

Each checkpoint is a whole state: a run continues from the newest, here or there. See `mirror`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lensprep.errors import CheckpointError, ConfigError, NotFoundError, StorageError
from lensprep.store import Entry, Store, is_remote, local_path, member_path, open_remote, open_store
from lensprep.store.files import fetch_file
from lenstrain.training.checkpoint import (
    LAST,
    MOST_BYTES,
    PREVIOUS,
    LostCheckpointError,
    link,
    load_checkpoint,
    load_latest,
)
from lenstrain.training.runlog import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    INTERRUPTED,
    METRICS_FILE,
    NONFINITE,
    TENSORBOARD,
)

RECORDS: Final = (CONFIG, ENVIRONMENT, METRICS_FILE)
NOTES: Final = (NONFINITE, INTERRUPTED)
LAST_NAME: Final = f"{CHECKPOINTS}/{LAST}"
WRITER: Final = "writer.json"
"""Names the one start of the run that sends to this store: the latest."""
FETCHED: Final = ".fetched"
"""Folder in the run folder for what is being fetched."""
RUNS_VARIABLE: Final = "LENSTRAIN_RUNS"
"""Environment variable that names the parent of the working folders of runs in a store."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a run lives."""

    folder: Path
    """Written first, and read."""
    uri: str | None = None
    """Store that the run is copied to, if any."""
    is_output: bool = False
    """Whether the user asked for the run there, and the folder is only a working folder."""

    @property
    def name(self) -> str:
        """The location of the run as the user named it."""
        return str(self.uri) if self.is_output else str(self.folder)


def find_home(out: str | os.PathLike[str], copy: str | None) -> Home:
    """Home of a run that the user wants in ``out``, with ``copy`` = ``train.checkpoint_copy``.

    Raises
    ------
    ConfigError
        If both name a store, and not the same.
    StorageError
        If a location is not valid, or no working folder can be written.
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
    """Working folder on this machine for a run in a store; its name follows from the URI.

    It lies below ``$LENSTRAIN_RUNS``, or else the user's cache folder or that of temporary files,
    whichever can be written.

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
        if not base.is_absolute():  # the home folder is not known
            continue
        with suppress(OSError):
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another user may have made a temporary folder of that name.
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
        If the store holds a run (or anything at all, if it is the run's output), or does not
        answer (only a warning if it is for a copy).
    """
    assert home.uri is not None
    try:
        if home.is_output:
            taken = open_remote(home.uri).has_any()
        else:
            store = open_store(home.uri)
            taken = any(store.has(name) for name in (CONFIG, WRITER, LAST_NAME))
    except StorageError as error:
        if home.is_output:
            raise
        warnings.warn(f"{home.uri} cannot be listed: {error} Training begins anyway.", stacklevel=2)
        return
    if taken and home.is_output:
        raise StorageError(
            f"{home.uri} exists and is not empty. Name another folder, or continue with --resume."
        )
    if taken:
        raise StorageError(
            f"{home.uri} holds the checkpoints of another run. Name another "
            "train.checkpoint_copy, or continue that run: give --resume and a run folder that "
            "does not exist yet."
        )


def fetch_newer(home: Home) -> None:
    """Update the run folder from the store, if that is ahead; in the main process only.

    Raises
    ------
    StorageError
        If the store does not answer, and is the run's output or this machine has nothing: the
        run must not silently begin again.
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
        text = f"{uri} cannot be read: {error} Continuing from {folder}, step {here}."
        warnings.warn(text, stacklevel=2)
        return
    newest, there = _newest(draft / CHECKPOINTS, uri)
    if here is not None and here >= there:
        warnings.warn(
            f"{folder} is at step {here}, and {uri}, which another start wrote, at step {there}: "
            "continuing from the folder.",
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
            warnings.simplefilter("ignore")  # `find_state` reads it again, and warns
            return int(load_latest(folder / CHECKPOINTS).content["step"])
    except LostCheckpointError:
        return None


def _is_foreign(folder: Path) -> bool:
    """Whether there is something other than a run, which must stay as it is."""
    if not folder.is_dir():
        return folder.exists()
    return not (folder / CONFIG).exists() and any(p.name != FETCHED for p in folder.iterdir())


def _is_sent_from(folder: Path, store: Store) -> bool:
    """Whether everything in the store came from this folder, which is therefore not behind."""
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
    """Fetch files; equal ones (of one size and version, as last.pt and best.pt) only once."""
    arrived: dict[tuple[int, str], Path] = {}
    for entry in entries:
        path = member_path(draft, entry.name)
        same = (entry.bytes, entry.version or entry.name)
        if entry.bytes > MOST_BYTES:
            raise StorageError(f"{store.uri}/{entry.name} has {entry.bytes:,} bytes; is it ours?")
        if same in arrived:
            path.parent.mkdir(parents=True, exist_ok=True)
            link(arrived[same], path)
        else:
            fetch_file(store, entry, path)
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
                raise CheckpointError(fault) from None  # it is complete, and may be the newest
            faults.append(fault)
    if not found:
        raise CheckpointError(faults[0])
    for fault in faults:
        warnings.warn(fault, stacklevel=3)
    step, _, path = max(found)
    return path, step


def _take_over(folder: Path, draft: Path, names: set[str]) -> None:
    """Move files into the run folder, last.pt at the end; other files there stay."""
    for name in sorted(names, key=lambda name: (name not in RECORDS, name == LAST_NAME)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (draft / name).replace(target)
