"""The bench on a real object store: it reads what it says, by both ways, and no way from memory."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from lensprep.dataset import RECORD_STRIDE, Dataset
from lensprep.errors import DatasetError, StorageError
from lensprep.store import open_store
from lenstrain.bench.loader import ROUNDS
from lenstrain.bench.remote import (
    _noted_requests,
    epoch_from_store,
    long_ranges,
    plain_client_seconds,
    run_remote_bench,
)
from lenstrain.cli import main
from lenstrain.data import StampLoader
from tests.datasets import dataset_fixture
from tests.s3server import uploaded

ROWS, SHARD_ROWS = 1024, 400


root = dataset_fixture(ROWS, SHARD_ROWS)


@pytest.fixture(scope="module")
def uri(s3_server, root):
    with uploaded(s3_server, root) as made:
        yield made


def covered(ranges):
    """Bytes of each shard that ranges cover; an overlap is an error."""
    bounds = {}
    for name, start, length in sorted(ranges):
        assert start >= bounds.get(name, 0), "two ranges overlap"
        bounds[name] = start + length
    return sum(length for _, _, length in ranges)


def test_the_bench_reports_both_rates_and_their_ratio(s3, uri):
    told = []
    found = run_remote_bench(
        uri, batch_size=64, consumer_rate=2000, seconds=2.0, s3=s3.options(connections=4),
        progress=lambda what, share: told.append((what, share)),
    )  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    assert len(found["rounds"]) == ROUNDS
    names = ("samples_per_s", "plain_client_samples_per_s", "long_ranges_samples_per_s")
    for name in (*names, "first_batch_s", "cpu_cores"):
        values = sorted(each[name] for each in found["rounds"])
        assert found[name] == values[ROUNDS // 2] > 0
    ratios = sorted(each[names[0]] / each[names[1]] for each in found["rounds"])
    assert found["over_plain_client"] == ratios[ROUNDS // 2]
    assert 0 <= found["stall_fraction"] <= 1
    assert (found["rows"], found["connections"], found["shuffle"]) == (ROWS, 4, "block")
    assert found["mixing_window_samples"] == ROWS
    # Every epoch came over the network, whole: nothing was left in memory from the one before.
    assert all(each["bytes"] >= ROWS * RECORD_STRIDE for each in found["rounds"])
    assert told[-1] == ("Done", 1.0)


def test_the_requests_that_are_made_again_are_those_of_an_epoch(s3, uri):
    loader = StampLoader(uri, batch_size=64, shuffle="block", s3=s3.options())
    requests = _noted_requests(loader)
    assert covered(requests) == ROWS * RECORD_STRIDE
    counted = epoch_from_store(loader)
    loader.close()
    assert counted["bytes"] >= ROWS * RECORD_STRIDE
    assert plain_client_seconds(open_store(uri, s3.options()), requests) > 0


def test_the_long_ranges_are_the_first_rows_of_the_split(s3, uri):
    shards = Dataset.open(uri, s3.options()).split("train").shards
    ranges = list(long_ranges(shards, 500))
    assert [(name, length) for name, _, length in ranges] == [
        ("train/train-000000.tar", 400 * RECORD_STRIDE),
        ("train/train-000001.tar", 100 * RECORD_STRIDE),
    ]
    assert covered(list(long_ranges(shards, ROWS))) == ROWS * RECORD_STRIDE


def test_the_command_measures_an_object_store(s3, uri):
    arguments = ["bench", "loader", uri, "--endpoint-url", s3.server.http, "--seconds", "0.5"]
    done = CliRunner().invoke(main, [*arguments, "--shuffle", "none", "--batch-size", "64"])
    assert done.exit_code == 0, done.output
    assert re.search(r"the same client +[\d,]+ stamps/s \(the loader: \d+ % of it\)", done.stdout)
    assert re.search(r"mixing window +64 stamps", done.stdout)


def test_a_memory_budget_that_does_not_do_is_told_in_one_line(s3, uri):
    done = CliRunner().invoke(
        main, ["bench", "loader", uri, "--endpoint-url", s3.server.http, "--memory-budget", "0.06"]
    )
    assert done.exit_code == 1
    assert re.search(r"(?m)^Error: .* needs .* ranges .* memory_budget larger by", done.stderr)


def test_a_split_that_is_not_there_is_refused(s3, uri):
    with pytest.raises(DatasetError, match="no split 'val'"):
        run_remote_bench(uri, split="val", s3=s3.options())


def test_a_local_dataset_is_refused_with_the_function_to_use(root):
    with pytest.raises(StorageError, match="use `run_loader_bench`"):
        run_remote_bench(str(root))
