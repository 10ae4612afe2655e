"""Runs: sorted on the way out, each shard's rows found and put in order on the way in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lensprep.convert.spill import arrange, read_records, read_stretches, write_run
from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.decode.placement import shard_range
from lensprep.errors import StorageError

STRIDE = DECALS.stride
LARGEST = Geometry(
    survey="large",
    bands=tuple("abcdefgh"),
    side=256,
    pixel_scale_arcsec=0.1,
    reference_band="a",
    zero_point=22.5,
    sky_noise=(1.0,) * 8,
)


def make_run(folder, name, places, splits, keys, notes=None, stride=STRIDE):
    """Records that carry their own place, so that a mix-up shows."""
    rows = len(places)
    records = np.zeros((rows, stride), np.uint8)
    records[:, :8] = np.array(places, "<u8").reshape(-1, 1).view(np.uint8)
    table = pa.table(
        {
            "key": keys,
            "place": pa.array(places, pa.uint64()),
            "region_split": splits,
            "note": notes or [""] * rows,
            "source_file": [name] * rows,
            "source_row_group": pa.array([0] * rows, pa.int32()),
            "source_row": list(range(rows)),
        }
    )
    write_run(folder / name, records, table)
    return folder / name


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(2)
    stems, places, splits = [], [], []
    for number in range(4):
        part = rng.integers(0, 2**64, 50, np.uint64).tolist()
        names = rng.choice(["train", "val", "test"], 50).tolist()
        keys = [f"{place:032x}" for place in part]
        stems.append(make_run(tmp_path, f"run-{number}", part, names, keys))
        places += part
        splits += names
    return stems, np.array(places, np.uint64), np.array(splits)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_all_rows_of_a_split_come_once_in_order_of_place(runs, shards):
    stems, places, splits = runs
    found = []
    for index in range(shards):
        rows = arrange(read_stretches(stems, "val", *shard_range(index, shards)))
        records = read_records(rows, np.empty((rows.table.num_rows, STRIDE), np.uint8))
        stored = np.ascontiguousarray(records[:, :8]).view("<u8")[:, 0].tolist()
        assert [f"{place:032x}" for place in stored] == rows.table["key"].to_pylist()
        assert "place" not in rows.table.column_names
        found += stored
    assert found == np.sort(places[splits == "val"]).tolist()


def test_records_read_in_parts_are_those_of_the_whole(tmp_path):
    rows = [(3, "a"), (5, "k"), (5, "k"), (7, "m"), (9, "z"), (11, "zz")]
    stem = make_run(
        tmp_path, "run", [p for p, _ in rows], ["train"] * 6, [k for _, k in rows], ["n"] * 6
    )
    arranged = arrange(read_stretches([stem], "train", 0, 1 << 64))
    assert arranged.table.num_rows == 5
    whole = read_records(arranged, np.empty((5, STRIDE), np.uint8))
    for size in (1, 2, 3):
        parts = [
            read_records(arranged, np.empty((min(size, 5 - i), STRIDE), np.uint8), i)
            for i in range(0, 5, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("stride", [4096, LARGEST.stride])
def test_records_of_any_size_come_back(tmp_path, stride):
    places = np.random.default_rng(3).integers(0, 2**64, 70, np.uint64).tolist()
    stems = [
        make_run(
            tmp_path, f"run-{i}", part, ["val"] * 35, [f"{p:032x}" for p in part], None, stride
        )
        for i, part in enumerate((places[:35], places[35:]))
    ]
    rows = arrange(read_stretches(stems, "val", 0, 1 << 64))
    for first, count in ((0, 70), (41, 20)):
        records = read_records(rows, np.empty((count, stride), np.uint8), first)
        stored = np.ascontiguousarray(records[:, :8]).view("<u8")[:, 0].tolist()
        assert stored == sorted(places)[first : first + count]
        assert not records[:, 8:].any()


def test_a_part_of_a_stretch_is_what_reading_it_gives(runs):
    stems, _, _ = runs
    whole = read_stretches(stems, "train", 0, 1 << 64)
    low, high = shard_range(1, 3)
    for part, direct in zip(
        [s.between(low, high) for s in whole],
        read_stretches(stems, "train", low, high),
        strict=True,
    ):
        assert part.first == direct.first
        assert part.table.equals(direct.table)


def test_of_equal_keys_the_same_row_stays_whatever_the_order(tmp_path):
    kept = []
    for number, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 2, 0])):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [(5, "k", "b"), (5, "k", "a"), (9, "z", "c")]
        stems = [
            make_run(folder, f"r{i}", [rows[j][0]], ["train"], [rows[j][1]], [rows[j][2]])
            for i, j in enumerate(order)
        ]
        arranged = arrange(read_stretches(stems, "train", 0, 1 << 64))
        kept.append(arranged.table["note"].to_pylist())
        assert arranged.dropped["note"].to_pylist() == ["b"]
        assert len(read_records(arranged, np.empty((2, STRIDE), np.uint8))) == 2
    assert kept == [["a", "c"]] * 3


def test_a_cut_run_is_named(runs):
    stems, _, _ = runs
    victim = stems[2].with_suffix(".dat")
    with victim.open("r+b") as file:
        file.truncate(10 * STRIDE + 5)
    for split in ("val", "test"):
        rows = arrange(read_stretches(stems, split, 0, 1 << 64))
        space = np.empty((rows.table.num_rows, STRIDE), np.uint8)
        with pytest.raises(StorageError, match=r"run-2\.dat ends at byte 266245: truncated"):
            read_records(rows, space)
