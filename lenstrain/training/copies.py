"""A second home for a run: its checkpoints copied to a store in the background, and fetched again.

Copying never stops a training: what fails is told as a warning and tried again with the next
checkpoint. Names in the store are those in the run folder.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from pathlib import Path

from lensprep.dataset.storage import Store, open_store, write_atomic
from lensprep.errors import StorageError
from lenstrain.training.checkpoint import LAST
from lenstrain.training.run import CHECKPOINTS
from lenstrain.training.runlog import CONFIG, ENVIRONMENT, METRICS

RECORDS = (CONFIG, ENVIRONMENT, METRICS)
LAST_NAME = f"{CHECKPOINTS}/{LAST}"
LONGEST_WAIT = 90.0
"""Seconds that the end of a run waits for its last copy: a spot instance has two minutes."""


class Copier:
    """Copies files of a run folder to a store, in a thread of its own, the newest content only.

    A checkpoint is replaced by renaming, so that a file that is being read stays whole.

    Parameters
    ----------
    folder : Path
        The run folder.
    uri : str
        Where the run is copied to: ``s3://`` or a folder.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self._store: Store | None = None
        self._waiting: list[str] = []
        self._busy = False
        self._ended = False
        self._faults: list[str] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoint-copy", daemon=True)
        self._thread.start()

    def submit(self, names: list[str]) -> None:
        """Ask for copies of files, last.pt and the records among them; returns at once.

        Names that still wait are copied once, with the content of their time.
        """
        with self._changed:
            wanted = [*names, LAST_NAME, *RECORDS]
            self._waiting += [name for name in wanted if name not in self._waiting]
            self._changed.notify_all()
        self._tell()

    def close(self, longest: float = LONGEST_WAIT) -> None:
        """Wait for the copies that were asked for, but not for ever, and end the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not (self._waiting or self._busy), longest)
        self._tell()
        if not done:
            warnings.warn(
                f"{self.uri} had not taken all of {self.folder} after {longest:.0f} s; what it "
                "holds is older.",
                stacklevel=2,
            )

    def _tell(self) -> None:
        """Warn of what failed, in the thread of the caller."""
        with self._changed:
            faults, self._faults = self._faults, []
        for fault in faults[:1]:
            warnings.warn(
                f"The run could not be copied to {self.uri}: {fault} The training goes on; "
                "the next checkpoint is tried again.",
                stacklevel=3,
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                name = self._waiting.pop(0)
                self._busy = True
            self._copy(name)

    def _copy(self, name: str) -> None:
        try:
            self._store = self._store or open_store(self.uri)
            self._store.write(name, (self.folder / name).read_bytes())
        except (StorageError, OSError) as error:
            with self._changed:
                self._faults.append(str(error))


def fetch_run(uri: str, out: Path) -> bool:
    """Bring a run back from its copy, to a machine that has nothing of it.

    Parameters
    ----------
    uri : str
        ``train.checkpoint_copy`` of the run.
    out : Path
        Run folder; not there, or empty. It gets its name when everything has arrived.

    Returns
    -------
    bool
        Whether there was a run.

    Raises
    ------
    StorageError
        If the store does not answer: the run is not silently begun again.
    """
    store = open_store(uri)
    names = [entry.name for entry in store.entries() if _belongs(entry.name)]
    if LAST_NAME not in names or CONFIG not in names:
        return False
    draft = out.with_name(f".{out.name}.fetched")
    shutil.rmtree(draft, ignore_errors=True)
    for name in names:
        write_atomic(draft / name, bytes(store.read(name)))
    if out.exists():
        out.rmdir()
    draft.rename(out)
    return True


def _belongs(name: str) -> bool:
    return name in RECORDS or (name.startswith(f"{CHECKPOINTS}/") and name.endswith(".pt"))


def check_free(uri: str) -> None:
    """Refuse to copy a new run over another one.

    Raises
    ------
    StorageError
        If there is a checkpoint. A store that does not answer is a warning only.
    """
    try:
        taken = any(entry.name == LAST_NAME for entry in open_store(uri).entries(CHECKPOINTS))
    except StorageError as error:
        warnings.warn(f"{uri} cannot be looked at: {error} The training begins.", stacklevel=2)
        return
    if taken:
        raise StorageError(
            f"{uri} holds the checkpoints of another run. Name another train.checkpoint_copy, or "
            "go on with that run: --resume and a run folder that does not exist."
        )
