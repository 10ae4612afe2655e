"""Conversion of much more data than memory is allowed: bounded, and the same with more workers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset.layout import RECORD_STRIDE
from tests.phase4c import stamp_blob, tiny_table, write_tree

ROWS = 100_000
LIMIT_BYTES = 1_500_000_000
STORE_LIMIT_BYTES = 1_600_000_000
"""With parts on the way to an object store; both as docs/how-to/convert.md has them."""


def large_tree(folder: Path) -> Path:
    """4.6 GB of rows of full-sized blobs; a few hundred different ones, each with many task_ids."""
    rng = np.random.default_rng(0)
    blobs = [
        stamp_blob(rng.normal(0, 0.01, (3, 64, 64)).astype(np.float32) + 0.01) for _ in range(250)
    ]
    part = tiny_table(len(blobs), stamp_npz=blobs)
    names = part.column_names
    for number in range(10):
        tables = []
        for copy in range(number, ROWS // len(blobs), 10):
            ids = [hashlib.sha256(f"{copy}/{i}".encode()).hexdigest() for i in range(len(blobs))]
            table = part.set_column(names.index("task_id"), "task_id", pa.array(ids))
            # A comment at the end of each archive: parquet would store equal blobs once.
            comments = [
                blob[:-2] + b"\x08\x00" + ids[i][:8].encode() for i, blob in enumerate(blobs)
            ]
            column = pa.array(comments, pa.binary())
            tables.append(table.set_column(names.index("stamp_npz"), "stamp_npz", column))
        write_tree(folder / f"part{number}", pa.concat_tables(tables), row_group_rows=2000)
    return folder


def tree_rss(pid: int) -> int:
    """Resident memory of a process and its workers, bytes.

    The process in which Python itself tracks semaphores (13 MB, idle) is not counted.
    """
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if b"resource_tracker" in command:
            continue
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        me, parent = int(fields["Pid"]), int(fields["PPid"])
        if pid in (me, parent) and "VmRSS" in fields:
            total += int(fields["VmRSS"].split()[0]) * 1024
    return total


def measured_run(*arguments: object) -> tuple[dict, int]:
    """Run lensprep; its JSON, and the largest memory of its process tree."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lensprep", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, tree_rss(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0
    return json.loads(output), peak


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = large_tree(tmp_path_factory.mktemp("src"))
    assert sum(p.stat().st_size for p in folder.rglob("*.parquet")) > 3 * LIMIT_BYTES
    return folder


@pytest.mark.slow
def test_memory_is_bounded_however_many_rows_there_are(tree, tmp_path):
    report, peak = measured_run("convert", tree, tmp_path / "ds", "--workers", 2)
    print(f"\n{report['accepted']} rows, peak {peak / 1e6:.0f} MB, {report['stamps_per_s']}/s")
    assert report["accepted"] == ROWS
    assert peak < LIMIT_BYTES
    assert report["peak_rss_bytes"] >= peak  # the sum of each process's own peak: never too low


@pytest.mark.slow
def test_memory_and_local_disk_are_bounded_on_the_way_into_an_object_store(
    tree, s3, tmp_path, monkeypatch
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    most, done = 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.05):
            most = max(most, folder_bytes(tmp_path / "tmp"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        report, peak = measured_run(
            "convert", tree, s3.uri, "--workers", 2, "--endpoint-url", s3.server.http
        )
    finally:
        done.set()
        watcher.join()
    print(
        f"\n{report['accepted']} rows, peak {peak / 1e6:.0f} MB, {most / 1e6:.0f} MB of disk, "
        f"{report['stamps_per_s']}/s"
    )
    assert report["accepted"] == ROWS
    assert peak < STORE_LIMIT_BYTES
    shard = 8192 * RECORD_STRIDE
    # Of each worker the records of one shard, and the shard: the dataset has twelve.
    assert shard < most < 2 * 2 * 1.1 * shard


def folder_bytes(folder: Path) -> int:
    """Bytes of its files, while others write and remove them."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike rglob, it passes over folders that have gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
