"""The ledger of a run: every time its checkpoints are scored on the test split.

A test split is opened once, after all choices are made. The ledger does not forbid a second look;
it makes one visible to `lenstrain audit`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from lensprep.dataset.files import join_uri, split_uri
from lensprep.dataset.storage import is_remote, local_path, open_store
from lensprep.dataset.strictjson import parse_json
from lensprep.errors import StorageError

LEDGER = "test_ledger.jsonl"
"""File in the run folder, one JSON object a line."""

CHECKPOINTS = "checkpoints"
_KEPT = ("checkpoint_sha256", "step", "epoch", "dataset_id", "split", "tta")


def record_opening(checkpoint: str | PathLike[str], facts: dict[str, Any]) -> str | Path | None:
    """Add a line to the ledger of the run that a checkpoint lies in.

    Parameters
    ----------
    checkpoint : str or path
        ``RUN/checkpoints/NAME.pt``; a loose file has no ledger, and one that cannot be written
        (a run that is read-only) is left as it is.
    facts : dict
        As `lenstrain infer` writes them into the scores.

    Returns
    -------
    str, Path or None
        The ledger.
    """
    if facts["split"] != "test":
        return None
    if is_remote(checkpoint):
        return _record_remote(str(checkpoint), facts)
    folder = local_path(checkpoint).resolve().parent
    if folder.name != CHECKPOINTS:
        return None
    path = folder.parent / LEDGER
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(facts))
    except OSError:
        return None
    return path


def _record_remote(checkpoint: str, facts: dict[str, Any]) -> str | None:
    """The same in an object store, where nothing can be appended to a file."""
    run, _, inner = split_uri(checkpoint)[0].rpartition("/")
    if inner != CHECKPOINTS:
        return None
    try:
        store = open_store(run)
        before = bytes(store.read(LEDGER)) if store.has(LEDGER) else b""
        store.write(LEDGER, before + _line(facts).encode())
    except StorageError:
        return None
    return join_uri(run, LEDGER)


def _line(facts: dict[str, Any]) -> str:
    opened = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({name: facts[name] for name in _KEPT} | {"opened": opened}) + "\n"


def read_ledger(run: Path) -> list[dict[str, Any]] | None:
    """Lines of a run's ledger, or None if there is none.

    Raises
    ------
    StorageError
        If one is damaged: how often the test split was opened is not known then.
    """
    path = run / LEDGER
    if not path.is_file():
        return None
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            entry = parse_json(line)
            lines.append({name: entry[name] for name in (*_KEPT, "opened")})
        except (ValueError, TypeError, KeyError):
            raise StorageError(
                f"{path}, line {number} is damaged: who opened the test split is not known."
            ) from None
    return lines
