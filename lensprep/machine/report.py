"""What both doctors report: versions, processors, memory, disks and a store, and how it is told."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lensprep.checks.finding import Finding, Severity
from lensprep.dataset import Dataset
from lensprep.errors import ProjectError, StorageError, size_text
from lensprep.machine.disk import Disk, measure_disk
from lensprep.machine.facts import extras_findings, find_machine, find_versions
from lensprep.machine.findings import judged, level, passed
from lensprep.machine.storage import Trial, try_store
from lensprep.store import S3Options

Tell = Callable[[str], None]
"""Called with what is being measured."""

_SHOWN: Final = (
    "lensprep", "python", "numpy", "numba", "pyarrow", "boto3", "webdataset", "torch", "torchvision"
)  # fmt: skip
"""Versions that people look at first; all of them are in the JSON."""
_LEAST_FREE: Final = 2e9
"""Bytes. With less on a disk nothing of use can be written there."""


def machine_report(
    needed: Sequence[str],
    *,
    disks: Sequence[Path],
    store: str | None,
    options: S3Options | None,
    tell: Tell,
) -> tuple[dict[str, Any], list[Finding]]:
    """What both doctors have: versions, processors and memory, disks and a store.

    Parameters
    ----------
    needed : sequence of str
        Extras without which the work is impossible.
    disks : sequence of Path
        Folders whose disks are measured; the current one and that of temporary files if none is
        given.
    store : str, optional
        Folder of an object store, in which an object is written and removed.
    options : S3Options, optional
    tell : callable

    Returns
    -------
    dict
        ``versions``, ``extras``, ``machine``, ``disks``, ``store``.
    list of Finding
    """
    versions, extras = find_versions()
    machine, findings = find_machine()
    findings = [*extras_findings(versions, tuple(needed)), *findings]
    report: dict[str, Any] = {"versions": versions, "extras": extras, "machine": machine}
    measured = []
    folders = disks or _apart([Path.cwd(), Path(tempfile.gettempdir())])
    for folder in folders:
        tell(f"measuring the disk of {folder}")
        try:
            measured.append(measure_disk(folder))
        except StorageError as error:
            severity: Severity = "blocker" if disks else "warn"
            advice = f"{error} Name a folder on another disk with --disk."
            findings.append(judged("disk", severity, str(folder), advice))
    findings += [_disk_finding(disk) for disk in measured]
    report["disks"] = [asdict(disk) for disk in measured]
    report["store"] = None
    if store is not None:
        tell(f"trying {store}")
        report["store"], more = store_report(store, options, write=True)
        findings += more
    return report, findings


def closed(findings: Sequence[Finding]) -> dict[str, Any]:
    """The end of a report: its findings, the worst first, and whether the work is possible."""
    order = ("problem", "warn", "ok")
    told = sorted(findings, key=lambda finding: order.index(level(finding)))
    return {
        "findings": [{"level": level(finding)} | finding.to_dict() for finding in told],
        "ok": not any(level(finding) == "problem" for finding in findings),
    }


def store_report(
    uri: str, options: S3Options | None, *, write: bool, name: str = ""
) -> tuple[dict[str, Any], list[Finding]]:
    """What a store could do, as numbers and as findings."""
    try:
        trials = try_store(uri, options, write=write, name=name)
    except ProjectError as error:
        trials = [Trial(name="open", ok=False, seconds=0.0, error=str(error))]
    findings = [
        judged("store", "blocker", trial.name, f"{trial.name}: {trial.error}")
        for trial in trials
        if not trial.ok
    ]
    if not findings:
        what = ", ".join(trial.name for trial in trials)
        findings.append(passed("store", f"{uri} does all that is needed: {what}."))
    return {"uri": uri, "trials": [trial.to_dict() for trial in trials]}, findings


def _apart(folders: Sequence[Path]) -> list[Path]:
    """The first of the folders on each disk; those that are not there are left out."""
    by_device = {folder.stat().st_dev: folder for folder in reversed(folders) if folder.is_dir()}
    return list(reversed(by_device.values()))


def _disk_finding(disk: Disk) -> Finding:
    if disk.free_bytes < _LEAST_FREE:
        return judged(
            "disk", "warn", disk.free_bytes,
            f"{disk.folder} has only {size_text(disk.free_bytes)} free. Make room there, or name "
            "another disk.",
        )  # fmt: skip
    return passed("disk", f"{disk.folder} can be written to.")


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """What the manifest of a dataset says of its size."""
    splits = dataset.manifest.splits
    shards = [shard for split in splits.values() for shard in split.shards]
    return {
        "kind": "dataset",
        "uri": dataset.uri,
        "rows": sum(split.rows for split in splits.values()),
        "bytes": sum(dataset.geometry.shard_bytes(shard.rows) for shard in shards),
        "files": len(shards),
        "splits": {name: split.rows for name, split in splits.items()},
    }


def source_text(source: dict[str, Any]) -> str:
    """Size of a tree or dataset in one line."""
    splits = ", ".join(f"{name} {rows:,}" for name, rows in (source["splits"] or {}).items())
    text = f"{source['rows']:,} rows, {size_text(source['bytes'])}, {source['files']:,} files"
    return f"{text}; {splits}" if splits else text


def machine_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what both doctors have in a report."""
    versions, machine = report["versions"], report["machine"]
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions)
    yield "versions", shown
    missing = [name for name, there in report["extras"].items() if not there]
    there = [name for name in report["extras"] if name not in missing]
    yield (
        "extras",
        (", ".join(there) or "none")
        + (f" (not installed: {', '.join(missing)})" if missing else ""),
    )
    memory = size_text(machine["memory_limit_bytes"] or machine["memory_bytes"])
    free = machine["memory_available_bytes"]
    available = "" if free is None else f" ({size_text(free)} of it free)"
    yield "machine", f"{machine['cores']} processors, {memory} of memory{available}"
    for disk in report["disks"]:
        yield "disk", Disk(**disk).text()
    if store := report["store"]:
        trials = ", ".join(
            f"{trial['name']} {1e3 * trial['seconds']:.0f} ms" if trial["ok"]
            else f"{trial['name']} failed"
            for trial in store["trials"]
        )  # fmt: skip
        yield "store", f"{store['uri']}: {trials}"
