"""Runs in an object store: what comes back is what local runs give, in a few ranges."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lensprep.convert import spill_remote
from lensprep.convert.spill import arrange, read_records, read_stretches, write_run
from lensprep.convert.spill_remote import fetch_stretches, send_run
from lensprep.dataset.record import payload_crc32
from lensprep.decode.placement import shard_range
from lensprep.errors import NotFoundError, StorageError
from tests.faultproxy import FaultProxy
from tests.lensprep.convert.test_spill import LARGEST, STRIDE

SPLITS = ["train", "val", "test"]


def make_rows(rng, rows, splits=SPLITS, places=None, stride=STRIDE):
    """Records of noise, and sidecar rows in no order."""
    records = rng.integers(0, 256, (rows, stride), np.uint8)
    if places is None:
        places = rng.integers(0, 2**64, rows, np.uint64)
    table = pa.table(
        {
            "key": [f"{n:032x}" for n in rng.integers(0, 2**62, rows).tolist()],
            "place": pa.array(places, pa.uint64()),
            "region_split": rng.choice(splits, rows).tolist(),
            "theta_e_arcsec": pa.array(rng.random(rows)),
            "note": ["x" * int(n) for n in rng.integers(0, 30, rows)],
            "payload_crc32": pa.array(payload_crc32(records)),
        }
    )
    return records, table


@pytest.fixture
def runs(s3, tmp_path):
    """The same runs here and there; one is empty in a split, one has a single row."""
    rng = np.random.default_rng(5)
    names = []
    for number, (rows, splits) in enumerate([(90, SPLITS), (70, ["train", "test"]), (1, ["val"])]):
        name = f"run-{number:06d}-000"
        records, table = make_rows(rng, rows, splits)
        write_run(tmp_path / name, records, table)
        send_run(s3.store(), name, records, table)
        names.append(name)
    return names


def fetch(s3, names, split, low, high, path, conversion="a"):
    return fetch_stretches(s3.store(), conversion, names, split, low, high, path)


@pytest.mark.parametrize("message_rows", [1, 7, 64])
def test_stretches_are_those_of_local_runs(s3, tmp_path, monkeypatch, message_rows):
    monkeypatch.setattr(spill_remote, "_INDEX_ROWS", message_rows)
    rng = np.random.default_rng(message_rows)
    names = []
    for number in range(3):
        names.append(f"run-{number:06d}-000")
        # Few different places: equal ones lie on both sides of a message's end.
        places = rng.integers(0, 2**64, 12, np.uint64)[rng.integers(0, 12, 60)]
        records, table = make_rows(rng, 60, places=places)
        write_run(tmp_path / names[-1], records, table)
        send_run(s3.store(), names[-1], records, table)
    edges = [int(place) for place in np.sort(places)[::20]]
    ranges = [shard_range(index, 3) for index in range(3)]
    ranges += [(low, high) for low in edges for high in edges if low <= high]
    for split in SPLITS:
        for low, high in [(0, 1 << 64), *ranges]:
            here = read_stretches([tmp_path / name for name in names], split, low, high)
            there = fetch(s3, names, split, low, high, tmp_path / "x" / "part.dat")
            for a, b in zip(here, there, strict=True):
                assert a.table.equals(b.table)
            rows_here, rows_there = arrange(here), arrange(there)
            assert rows_here.table.equals(rows_there.table)
            space = [np.empty((rows_here.table.num_rows, STRIDE), np.uint8) for _ in "ab"]
            read_records(rows_here, space[0])
            read_records(rows_there, space[1])
            np.testing.assert_array_equal(*space)


def test_a_run_of_many_parts_comes_back(s3, tmp_path):
    records, table = make_rows(np.random.default_rng(0), 1100)
    send_run(s3.store(), "large", records, table)
    write_run(tmp_path / "large", records, table)
    answer = s3.store().client.head_object(Bucket="bucket", Key=s3.store().key("large.run"))
    assert answer["ETag"].endswith('-6"')
    here = arrange(read_stretches([tmp_path / "large"], "train", 0, 1 << 64))
    there = arrange(fetch(s3, ["large"], "train", 0, 1 << 64, tmp_path / "part.dat"))
    space = [np.empty((here.table.num_rows, STRIDE), np.uint8) for _ in "ab"]
    np.testing.assert_array_equal(read_records(here, space[0]), read_records(there, space[1]))


@pytest.mark.parametrize(("stride", "parts"), [(4096, 1), (945_152, 3), (LARGEST.stride, 3)])
def test_records_of_any_size_come_back(s3, tmp_path, stride, parts):
    """In parts that a store takes: all but the last of one size, of 5 MiB at least."""
    records, table = make_rows(np.random.default_rng(0), 17, stride=stride)
    send_run(s3.store(), "any", records, table)
    write_run(tmp_path / "any", records, table)
    answer = s3.store().client.head_object(Bucket="bucket", Key=s3.store().key("any.run"))
    assert answer["ETag"].rpartition("-")[2] == (f'{parts}"' if parts > 1 else answer["ETag"])
    for split in SPLITS:
        here = arrange(read_stretches([tmp_path / "any"], split, 0, 1 << 64))
        path = tmp_path / "part.dat"
        there = arrange(fetch(s3, ["any"], split, 0, 1 << 64, path, f"any {stride}"))
        assert here.table.equals(there.table)
        space = [np.empty((here.table.num_rows, stride), np.uint8) for _ in "ab"]
        np.testing.assert_array_equal(read_records(here, space[0]), read_records(there, space[1]))


def test_a_task_asks_each_run_for_what_it_needs_and_for_its_index_once(s3, runs, tmp_path):
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        store = s3.store(endpoint_url=proxy.url)
        for index in range(4):
            places = shard_range(index, 4)
            fetch_stretches(store, "b", runs, "train", *places, tmp_path / "part.dat")
        tails, train = 3, 2  # runs, and those of them that have rows in it
        # Over plain HTTP what has no checksum, all but the records, is read twice.
        assert proxy.count("GET") <= 2 * tails + 4 * (2 + 1) * train
        assert proxy.bytes_down < 161 * (STRIDE + 2 * 2000) + 2 * 3 * 64_000


def test_the_indexes_of_an_earlier_conversion_are_not_used(s3, runs, tmp_path):
    path = tmp_path / "part.dat"
    before = fetch(s3, runs[:1], "train", 0, 1 << 64, path, "first")
    records, table = make_rows(np.random.default_rng(9), 33)
    send_run(s3.store(), runs[0], records, table)
    after = fetch(s3, runs[:1], "train", 0, 1 << 64, path, "second")
    assert not after[0].table.equals(before[0].table)


def damage(s3, name, at):
    data = bytearray(s3.store().read(f"{name}.run"))
    data[at] ^= 0x55
    s3.store().write(f"{name}.run", bytes(data))


@pytest.mark.parametrize("at", [700, STRIDE - 10, -1, -3])  # pixels, JSON, the index
def test_a_damaged_run_is_named_with_the_remedy(s3, runs, tmp_path, at):
    damage(s3, runs[0], at)
    first = read_stretches([tmp_path / runs[0]], "train", 0, 1 << 64)[0]
    assert first.first == 0  # the record of byte 700
    message = r"run-000000-000\.run is damaged\. Remove it and run-000000\.json"
    with pytest.raises(StorageError, match=message):
        fetch(s3, runs, "train", 0, 1 << 64, tmp_path / "part.dat", f"damaged {at}")


def test_a_missing_run_is_named(s3, runs, tmp_path):
    s3.store().delete(f"{runs[1]}.run")
    with pytest.raises(NotFoundError, match=r"run-000001-000\.run"):
        fetch(s3, runs, "train", 0, 1 << 64, tmp_path / "part.dat", "missing")
