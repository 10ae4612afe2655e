"""The plan of a conversion: what it converts, with which settings, and where it works.

    before = find_plan(store, resume=...)     of an earlier conversion; refuses an occupied folder
    plan = Plan.new(...)                      of a new one
    claim(store, plan)                        from here on the folder is taken

The plan is the file ``.work/plan.json`` in the dataset. It is the first file to be written there,
and is removed after the manifest has been written.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from lensprep.convert.workfolder import PLAN_NAME
from lensprep.dataset.layout import MANIFEST_NAME
from lensprep.dataset.manifest import Manifest
from lensprep.dataset.strictjson import parse_json
from lensprep.errors import ChangedError, DatasetError
from lensprep.store import LocalStore, Store, check_location, is_remote, local_path

WORK_FOLDER: Final = ".work"
"""Folder in the dataset that holds the plan and, by default, runs and progress."""

PLAN: Final = f"{WORK_FOLDER}/{PLAN_NAME}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one conversion converts, and where it works."""

    id: str = ""
    """Distinguishes it from an earlier one in the same folder."""
    work: str | None = None
    """Its work folder, local or ``s3://``; the one in the dataset if not given."""
    config: Mapping[str, Any]
    """Settings that decide the bytes."""
    source: str
    """Digest of the source's listing."""
    failed: bool = False
    """Whether it gave up without a dataset, so that another one may replace it."""

    @classmethod
    def new(cls, config: Mapping[str, Any], source: str, work: str | None) -> Plan:
        """Plan of a new conversion, with a work folder in the folder ``work`` if that is given."""
        conversion = secrets.token_hex(8)
        folder = _work_folder(work, conversion)
        return cls(id=conversion, work=folder, config=config, source=source)

    def goes_on(self, now: Plan, dataset: Store, source: str, work: str | None) -> bool:
        """Whether this earlier conversion has the rows, settings and work folder of the new one.

        Raises
        ------
        DatasetError
            If it differs and has not failed: it may be running.
        """
        difference = self._difference(now, dataset, source, work)
        if difference is not None and not self.failed:
            raise DatasetError(difference)
        return difference is None

    def _difference(self, now: Plan, dataset: Store, source: str, work: str | None) -> str | None:
        if self.source != now.source:
            return (
                f"{dataset.uri} is an interrupted conversion of other source files than {source} "
                "has now. Remove the folder and convert again."
            )
        if changed := _changed(self.config, now.config):
            return (
                f"{dataset.uri} was begun with {changed}. Resume with the same settings and "
                "version, or remove the folder."
            )
        if work is not None and _work_folder(work, self.id) != self.work:
            return (
                f"{dataset.uri} was begun with its work in {self.work or WORK_FOLDER}, not in "
                f"{work}. Resume without --work."
            )
        return None

    def to_json(self) -> bytes:
        """Text of the file."""
        return json.dumps(asdict(self), indent=2).encode()


def _work_folder(work: str | None, conversion: str) -> str | None:
    if work is None:
        return None
    if is_remote(work):
        return f"{work.rstrip('/')}/lensprep-{conversion}".replace("s3a://", "s3://", 1)
    return str(local_path(work).absolute() / f"lensprep-{conversion}")


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that has changed, with both values."""
    for name, value in now.items():
        if before.get(name) != value:
            return f"{name} = {before.get(name)!r}, not {value!r}"
    return None


def find_plan(dataset: Store, *, resume: bool) -> Plan | None:
    """Plan of a conversion that began here; None where there is nothing yet.

    A finished dataset still has its plan if it was killed between commit and clean-up. With
    ``resume`` a finished dataset without one is accepted too.

    Raises
    ------
    DatasetError
        If the folder holds something else, or a finished dataset or an interrupted conversion and
        ``resume`` is not set.
    """
    if isinstance(dataset, LocalStore):
        check_location(dataset.root)
    if not dataset.has_any():
        return None
    finished = dataset.has(MANIFEST_NAME)
    if finished and not resume:
        raise DatasetError(f"{dataset.uri} is a finished dataset already. Choose another folder.")
    if not dataset.has(PLAN):
        if finished:
            return None
        what = "no interrupted conversion but other files" if resume else "other files"
        raise DatasetError(f"{dataset.uri} holds {what}. Choose another folder.")
    plan = read_plan(dataset)
    if not (resume or plan.failed):
        raise DatasetError(
            f"{dataset.uri} holds an interrupted conversion, or one that is running. Add --resume "
            "to continue it, or remove the folder."
        )
    return plan


def read_plan(dataset: Store) -> Plan:
    """Plan that a folder holds; DatasetError if the file is not a plan."""
    try:
        found = dict(parse_json(bytes(dataset.read(PLAN))))
        return Plan(**{one.name: found[one.name] for one in fields(Plan) if one.name in found})
    except (ValueError, TypeError):
        raise DatasetError(
            f"{dataset.uri} holds a {PLAN} that is not the plan of a conversion. Remove the "
            "folder, or choose another one."
        ) from None


def claim(dataset: Store, plan: Plan) -> None:
    """Take a folder; DatasetError if another conversion took it at the same moment."""
    try:
        dataset.create(PLAN, plan.to_json())
    except ChangedError:
        raise taken(dataset) from None


def taken(dataset: Store) -> DatasetError:
    """The error for a folder that another conversion has taken meanwhile."""
    return DatasetError(
        f"Another conversion to {dataset.uri} has just begun. Choose another folder."
    )


def require_finished(
    manifest: Manifest, config: Mapping[str, Any], digest: str, dataset: Store, source: str
) -> None:
    """Raise DatasetError if a finished dataset was made of other rows or with other settings."""
    if manifest.source.get("digest") != digest:
        raise DatasetError(
            f"{dataset.uri} is a finished dataset of other source files than {source} has now. "
            "Choose another folder."
        )
    if changed := _changed(manifest.config, config):
        raise DatasetError(
            f"{dataset.uri} is a finished dataset that was made with {changed}. Choose another "
            "folder."
        )
