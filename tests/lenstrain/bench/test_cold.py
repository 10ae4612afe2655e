"""The loader's bench on a dataset that is not in memory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from lensprep.errors import StorageError
from lenstrain.bench.cold import run_cold_bench
from lenstrain.bench.loader import ROUNDS
from lenstrain.cli import main
from tests.datasets import dataset_fixture, tiny_dataset

SHARED_MEMORY = Path("/dev/shm")

root = dataset_fixture(4096, shard_rows=1024)


def test_the_bench_compares_the_loader_with_random_reads(root):
    try:
        found = run_cold_bench(root, batch_size=64, consumer_rate=5000, seconds=3)
    except StorageError:
        pytest.skip("the file system of temporary files keeps its pages in memory")
    assert json.loads(json.dumps(found)) == found
    assert len(found["rounds"]) == ROUNDS
    for name in ("samples_per_s", "random_reads_per_s", "over_random_reads"):
        values = sorted(each[name] for each in found["rounds"])
        assert found[name] == values[ROUNDS // 2] > 0
    # All of it came from the disk; and also what was read ahead when the time was over.
    assert found["read_over_payload"] > 0.9
    assert 0 <= found["stall_fraction"] <= 1


@pytest.mark.skipif(not os.access(SHARED_MEMORY, os.W_OK), reason="no file system in memory")
def test_a_dataset_in_memory_cannot_be_measured_cold():
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        root = tiny_dataset(Path(folder), 256)
        with pytest.raises(StorageError, match="stays in memory"):
            run_cold_bench(root, batch_size=64, seconds=1)


def test_a_store_cannot_be_measured_cold():
    done = CliRunner().invoke(main, ["bench", "loader", "s3://bucket/ds", "--cold"])
    assert done.exit_code == 2
    assert "--cold is for a local dataset" in done.output
