"""The ledger of a run: every time its checkpoints are scored on the test split.

A test split should be opened once, after all choices are made. The ledger does not forbid a second
look, but makes it visible to `lenstrain audit`. Scoring again with the same weights and options
shows nothing new: it is the same opening, in whatever precision.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from lensprep.dataset.strictjson import parse_json
from lensprep.errors import StorageError
from lensprep.store import Uri, is_remote, join_uri, local_path, open_store, split_uri

_log = logging.getLogger("lenstrain.ledger")

LEDGER = "test_ledger.jsonl"
"""File in the run folder, one JSON object a line."""

CHECKPOINTS = "checkpoints"
_KEPT = ("checkpoint_sha256", "step", "epoch", "dataset_id", "split", "tta")
_MEMBERS = "members"


def run_of(checkpoint: Uri) -> str | None:
    """Run folder of ``RUN/checkpoints/NAME.pt``; None for a loose file, which has no ledger."""
    if is_remote(checkpoint):
        run, _, inner = split_uri(checkpoint)[0].rpartition("/")
        return run if inner == CHECKPOINTS else None
    folder = local_path(checkpoint).resolve().parent
    return str(folder.parent) if folder.name == CHECKPOINTS else None


def record_opening(run: Uri, facts: dict[str, Any]) -> None:
    """Add a line to the ledger of a run, local or s3://.

    `facts` are those that `lenstrain infer` writes into the scores, but ``members`` are the digests
    of all checkpoints whose mean the scores are.

    Raises
    ------
    StorageError
        If it cannot be written, as in a run that is read-only.
    """
    opened = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({name: facts[name] for name in (*_KEPT, _MEMBERS)} | {"opened": opened})
    if not is_remote(run):
        try:
            with (local_path(run) / LEDGER).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(
                f"{join_uri(run, LEDGER)} cannot be written: {error.strerror or error}."
            ) from error
        return
    store = open_store(run)  # which cannot append to an object
    before = bytes(store.read(LEDGER)) if store.has(LEDGER) else b""
    store.write(LEDGER, before + line.encode() + b"\n")


def read_ledger(run: Uri) -> list[dict[str, Any]] | None:
    """Lines of a run's ledger, or None if there is none; StorageError if one is damaged."""
    store = open_store(run)
    if not store.has(LEDGER):
        return None
    lines = []
    for number, line in enumerate(bytes(store.read(LEDGER)).splitlines(), 1):
        if not line:
            continue
        try:
            entry = parse_json(line)
            kept = {name: entry[name] for name in (*_KEPT, "opened")}
            # Lines of older versions name no members: the checkpoint itself was scored.
            kept[_MEMBERS] = sorted(entry.get(_MEMBERS, [entry["checkpoint_sha256"]]))
            lines.append(kept)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StorageError(
                f"{join_uri(run, LEDGER)}, line {number} is damaged: how often the test split was "
                "opened is not known."
            ) from None
    return lines


def openings(lines: Sequence[dict[str, Any]], dataset_id: str) -> set[str]:
    """The different openings of one dataset's test split, each by other weights or options."""
    return {opening(line) for line in lines if line["dataset_id"] == dataset_id}


def opening(facts: dict[str, Any]) -> str:
    """Identity of an opening: equal for the same weights, dataset and options."""
    return json.dumps([sorted(facts[_MEMBERS]), facts["dataset_id"], facts["split"], facts["tta"]])


def announce_opening(checkpoint: Uri, facts: dict[str, Any]) -> dict[str, Any]:
    """Log what is known of earlier openings of the test split, before it is opened again.

    `facts` are as for `record_opening`; another split than test is no opening.

    Returns
    -------
    dict
        ``ledger`` (path or None), ``before`` (other openings; None if not known), ``repeated``
        (whether this one is already in it), ``fault`` (why it could not be read, or None).
    """
    found: dict[str, Any] = {"ledger": None, "before": None, "repeated": False, "fault": None}
    if facts["split"] != "test":
        return found
    run = run_of(checkpoint)
    what = f"This opens the test split of {facts['dataset']}"
    if run is None:
        found["fault"] = f"{checkpoint} is not in a run folder"
        _log.warning("%s, and no ledger counts it: %s.", what, found["fault"])
        return found
    found["ledger"] = join_uri(run, LEDGER)
    try:
        before = openings(read_ledger(run) or [], facts["dataset_id"])
    except StorageError as error:
        found["fault"] = str(error)
        _log.warning("%s. %s", what, error)
        return found
    found["repeated"] = opening(facts) in before
    found["before"] = len(before - {opening(facts)})
    if found["before"]:
        times = "once" if found["before"] == 1 else f"{found['before']} times"
        _log.warning(
            "%s, which was opened with other weights or options of %s %s before (%s): choosing "
            "among them spends it.", what, run, times, LEDGER,
        )  # fmt: skip
    elif found["repeated"]:
        _log.info("%s again, with the same weights and options: the same opening.", what)
    else:
        _log.info("%s for the first time with %s. Do so once all choices are made.", what, run)
    return found


def note_opening(found: dict[str, Any], facts: dict[str, Any]) -> None:
    """Record an opening that was announced, or warn that this is not possible."""
    if found["ledger"] is None:
        return
    try:
        record_opening(split_uri(found["ledger"])[0], facts)
    except StorageError as error:
        found["fault"] = str(error)
        _log.warning("This opening of the test split is in no ledger: %s", error)
