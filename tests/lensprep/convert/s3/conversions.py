"""What tests of conversions into an object store share."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.convert import convert
from tests.lensprep.convert.conversions import CONFIG
from tests.s3server import Place


def small_runs(patch):
    """Many runs from few rows."""
    patch.setattr("lensprep.convert.runs.RUN_ROWS", 16)
    patch.setattr("lensprep.convert.spill_remote._INDEX_ROWS", 4)


def contents(root):
    """Name and bytes of every file of a folder, or of a place."""
    if isinstance(root, Place):
        store = root.store()
        return {entry.name: bytes(store.read(entry.name)) for entry in store.entries()}
    files = [path for path in Path(root).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def without_source(files):
    """Without the differences: the manifest names the source, and what was read from it twice."""
    manifest = json.loads(files["manifest.json"])
    del manifest["source"]["uri"], manifest["account"]["read_again"]
    return {**files, "manifest.json": manifest}


def without_groups(files):
    """`rejects.parquet` as rows: its row groups are those of the tasks."""
    rows = pq.read_table(pa.BufferReader(files["rejects.parquet"])).to_pylist()
    return {**files, "rejects.parquet": rows}


def unfinished(place):
    store = place.store()
    answer = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def put_tree(store, tree):
    for path in tree.rglob("*.parquet"):
        store.write(path.relative_to(tree).as_posix(), path.read_bytes())


def begin_and_stop(tree, s3, phase="shards", after=2, **arguments):
    """A conversion that is interrupted in a round, after some of its tasks."""
    seen = []

    def stop(name, done, total):
        seen.append(name)
        if seen.count(phase) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(
            str(tree), s3.uri, CONFIG, workers=1, progress=stop, options=s3.options(), **arguments
        )
