"""The ledger of a run: every time its checkpoints are scored on the test split.

A test split is opened once, after all choices are made. The ledger does not forbid a second look;
it makes one visible to `lenstrain audit`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LEDGER = "test_ledger.jsonl"
"""File in the run folder, one JSON object a line."""

_KEPT = ("checkpoint_sha256", "step", "epoch", "dataset_id", "split", "tta")


def record_opening(checkpoint: Path, facts: dict[str, Any]) -> Path | None:
    """Add a line to the ledger of the run that a checkpoint lies in.

    Parameters
    ----------
    checkpoint : Path
        ``RUN/checkpoints/NAME.pt``; a loose file has no ledger, and one that cannot be written
        (a run that is read-only) is left as it is.
    facts : dict
        As `lenstrain infer` writes them into the scores.

    Returns
    -------
    Path or None
        The ledger.
    """
    folder = checkpoint.resolve().parent
    if facts["split"] != "test" or folder.name != "checkpoints":
        return None
    path = folder.parent / LEDGER
    line = {name: facts[name] for name in _KEPT}
    line["opened"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError:
        return None
    return path


def read_ledger(run: Path) -> list[dict[str, Any]] | None:
    """Lines of a run's ledger, or None if there is none."""
    path = run / LEDGER
    if not path.is_file():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
