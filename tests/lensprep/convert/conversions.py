"""What tests of conversions share: a configuration, and what a dataset holds."""

from __future__ import annotations

import pyarrow.parquet as pq

from lensprep.convert import ConvertConfig
from lensprep.dataset import Dataset

CONFIG = ConvertConfig(shard_rows=20, max_reject_rate=1.0)


def digests(root):
    manifest = Dataset.open(root).manifest
    return {s.name: s.sha256 for split in manifest.splits.values() for s in split.shards}


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def rejects(root):
    return pq.read_table(root / "rejects.parquet").to_pylist()


def interrupt(*_):
    raise KeyboardInterrupt
