"""Whether a machine can convert, how long that will take, and what to mend before.

report = run_doctor("/data/phase4c", disks=[Path("/nvme")])
report["findings"], report["convert"]["seconds"], doctor_facts(report)
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from lensprep.bench import made_rows, some_rows, write_parquet
from lensprep.checks.finding import Finding
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import DECALS, Dataset
from lensprep.dataset.layout import MANIFEST_NAME, SPLITS
from lensprep.errors import InputError, ProjectError, size_text, time_text
from lensprep.machine import (
    Tell,
    closed,
    dataset_facts,
    judged,
    machine_facts,
    machine_report,
    passed,
    source_text,
    store_report,
)
from lensprep.source.catalog import is_catalog
from lensprep.source.survey import DECALS_SURVEY, SPLIT_COLUMN, Survey
from lensprep.source.tree import Source
from lensprep.store import S3Options, is_remote, local_path, open_store

SAMPLE_ROWS: Final = 1024
"""Converted to measure the rate: half a second."""
_WARM_UP_ROWS: Final = 64
_COUNTING_S: Final = 3.0
"""Time for counting the rows of the splits of a tree."""


def run_doctor(
    src: str | None = None,
    *,
    disks: Sequence[Path] = (),
    store: str | None = None,
    survey: Survey = DECALS_SURVEY,
    options: S3Options | None = None,
    tell: Tell = lambda what: None,
) -> dict[str, Any]:
    """Look at the machine, and at a source or a dataset if one is named.

    Parameters
    ----------
    src : str, optional
        A tree to be converted, or a dataset. Nothing is written into it.
    disks : sequence of Path
        Folders whose disks are measured; the current one and that of temporary files if none is
        given.
    store : str, optional
        Folder of an object store, in which an object is written and removed.
    survey : Survey
        What `src` is.
    options : S3Options, optional
    tell : callable

    Returns
    -------
    dict
        Described in docs/how-to/doctor.md.
    """
    report, found = machine_report((), disks=disks, store=store, options=options, tell=tell)
    report |= {"source": None, "convert": None}
    findings = list(found)
    if src is not None:
        try:
            findings += _look_at(src, report, survey, options, tell)
        except ProjectError as error:
            findings.append(judged("source", "blocker", src, str(error)))
    return report | closed(findings)


# ---------------------------------------------------------------------------------------------
# The source
# ---------------------------------------------------------------------------------------------


def _look_at(
    src: str,
    report: dict[str, Any],
    survey: Survey,
    options: S3Options | None,
    tell: Tell,
) -> Iterator[Finding]:
    """Fill in ``source`` and ``convert``, and yield what is to be said of them."""
    tell(f"opening {src}")
    if is_remote(src) and report["store"] is None:
        report["store"], found = store_report(src, options, write=False)
        yield from found
    if is_catalog(src, survey, options):
        report["source"] = {"kind": "catalogue", "uri": src}
        yield passed(
            "source",
            f"{src} is a catalogue of cutouts. How long they take is not estimated: the time goes "
            "into opening their files.",
        )
        return
    if (is_remote(src) or local_path(src).is_dir()) and open_store(src, options).has(MANIFEST_NAME):
        report["source"] = dataset_facts(Dataset.open(src, options))
        yield passed("source", f"{src} is a dataset: it is converted already.")
        return
    source = Source.open(src, survey=survey, options=options)
    report["source"] = {
        "kind": "tree",
        "uri": src,
        "rows": source.rows,
        "bytes": source.bytes,
        "files": len(source.files),
        "splits": _count_splits(source),
    }
    tell(f"converting {SAMPLE_ROWS} rows of it")
    report["convert"] = estimate = _estimate_convert(source, report, options)
    yield _judge_space(estimate, report)


def _count_splits(source: Source) -> dict[str, int] | None:
    """Rows of each split; None if the tree does not state them, or has too many to count."""
    if SPLIT_COLUMN not in source.schema.names:
        return None
    counts, end = Counter[str](), time.monotonic() + _COUNTING_S
    for file in source.files:
        for table in source.iter_file(file, [SPLIT_COLUMN]):
            for found in table[SPLIT_COLUMN].value_counts().to_pylist():
                counts[str(found["values"])] += found["counts"]
            if time.monotonic() > end:
                return None
    return {name: counts[name] for name in SPLITS if name in counts}


def _estimate_convert(
    source: Source, report: dict[str, Any], options: S3Options | None
) -> dict[str, Any]:
    """How long conversion takes, from a sample on one processor and the first disk."""
    remote, geometry = is_remote(source.uri), source.survey.geometry
    started = time.perf_counter()
    own = source.survey.is_phase4c
    table = some_rows(source.uri, SAMPLE_ROWS, options) if own else made_rows(SAMPLE_ROWS)
    read_rate = table.num_rows / (time.perf_counter() - started) if remote and own else None
    # Of stamps of another size, the time follows their pixels.
    rate = _convert_rate(table) * DECALS.payload_bytes / geometry.payload_bytes
    machine = report["machine"]
    workers = max(1, int(min(machine["cores"], machine["cores_limit"] or machine["cores"])))
    seconds = {"processors": source.rows / (rate * workers)}
    if read_rate is not None:
        seconds["network"] = source.rows / (read_rate * workers)
    if report["disks"]:
        # Written as runs, read, and written as shards.
        disk, data = report["disks"][0], source.rows * geometry.stride
        reading = data / disk["read_bytes_per_s"] if disk["read_bytes_per_s"] else 0.0
        seconds["disk"] = 2 * data / disk["write_bytes_per_s"] + reading
    bottleneck = max(seconds, key=seconds.__getitem__)
    return {
        "stamps_per_s_per_worker": rate,
        "workers": workers,
        "sample_rows": table.num_rows,
        "sample": "its own rows" if own else "made stamps of DECaLS, scaled by the pixels",
        "seconds": seconds[bottleneck],
        "seconds_by": seconds,
        "bottleneck": bottleneck,
        "dataset_bytes": source.rows * geometry.stride,
    }


def _convert_rate(table: pa.Table) -> float:
    """Rows per second that one process converts, without starting it or compiling."""
    rates = []
    with tempfile.TemporaryDirectory(prefix="lensprep-doctor-") as name:
        for part in (table.slice(0, _WARM_UP_ROWS), table):
            tree = Path(name) / "tree"
            write_parquet(part, tree / "part-00000.parquet")
            started = time.perf_counter()
            try:
                convert(str(tree), f"{name}/out", ConvertConfig(max_reject_rate=1.0), workers=1)
            except InputError as error:  # a sample may lack what the whole has, such as a class
                raise InputError(f"A sample cannot be converted: {error}") from error
            rates.append(part.num_rows / (time.perf_counter() - started))
            shutil.rmtree(f"{name}/out")
    return rates[-1]


def _judge_space(estimate: dict[str, Any], report: dict[str, Any]) -> Finding:
    """Whether a disk has room for the dataset and what is written between the rounds."""
    needed = 2 * estimate["dataset_bytes"]
    if not report["disks"] or any(disk["free_bytes"] > needed for disk in report["disks"]):
        return passed("space", f"Conversion needs {size_text(needed)}, of which half remains.")
    return judged(
        "space", "warn", needed,
        f"Conversion needs {size_text(needed)} while it runs, and none of the disks that were "
        "looked at has as much free. Write to another one (name it with --disk), or put what is "
        "written between its rounds elsewhere with `lensprep convert --work`.",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# For people
# ---------------------------------------------------------------------------------------------


def doctor_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of everything in a report but the findings."""
    yield from machine_facts(report)
    if (source := report["source"]) and "rows" in source:
        yield "source", source_text(source)
    if convert_ := report["convert"]:
        yield (
            "convert",
            f"about {time_text(convert_['seconds'])} with {convert_['workers']} workers; the "
            f"{convert_['bottleneck']} will be the bottleneck. An estimate from "
            f"{convert_['sample_rows']:,} rows ({convert_['sample']}) on one: "
            f"{convert_['stamps_per_s_per_worker']:,.0f} stamps/s.",
        )
