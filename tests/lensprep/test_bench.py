"""The benchmark: honest contestants that do the same work, and figures that agree."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep import bench
from lensprep.bench import run_bench, seed_path
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.engine import default_workers
from lensprep.errors import InputError
from tests.lensprep.blobs import BAD
from tests.phase4c import tiny_table, tiny_tree, write_tree
from tests.realstamps import needs_real_cutouts, real_tree

PARTS = {"inflate_floor", "decode", "normalize", "convert", "seed_path"}


@pytest.fixture(scope="module")
def told():
    """What the progress of `result` was told."""
    return []


@pytest.fixture(scope="module")
def result(told):
    return run_bench(rows=96, rounds=2, progress=lambda *args: told.append(args))


def test_result_has_the_promised_keys_and_is_json(result):
    assert {
        "seed_path_stamps_per_s",
        "stamps_per_s",
        "inflate_floor_stamps_per_s",
        "speedup",
        "over_floor",
    } <= result.keys()
    assert json.loads(json.dumps(result)) == result
    assert result["rows"] == 96
    assert result["machine"]["processor"]
    assert result["versions"].keys() >= {"python", "numpy", "numba", "pyarrow", "deflate"}


def test_figures_agree_with_the_rounds(result):
    assert len(result["runs"]) == 2
    for run in result["runs"]:
        assert run.keys() == PARTS
    # The least of each is the least disturbed.
    least = {part: min(run[part] for run in result["runs"]) for part in PARTS}
    assert least["inflate_floor"] < least["decode"] < least["convert"]
    seconds = {part: np.median([run[part] for run in result["runs"]]) for part in PARTS}
    assert result["stamps_per_s"] == pytest.approx(96 / seconds["convert"])
    assert result["speedup"] == pytest.approx(seconds["seed_path"] / seconds["convert"])
    assert result["over_floor"] == pytest.approx(seconds["convert"] / seconds["inflate_floor"])
    assert result["us_per_stamp"]["decode"] == pytest.approx(1e6 * seconds["decode"] / 96)


def test_made_stamps_compress_as_real_ones(result):
    assert 42_000 < result["blob_bytes"] < 47_000


def test_source_gives_the_rows_and_one_processor_has_no_second_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "default_workers", lambda: 1)
    tree = tiny_tree(tmp_path, rows=60)
    before = sorted(tree.rglob("*"))
    result = run_bench(str(tree), rows=40, rounds=1, folder=tmp_path)
    assert result["rows"] == 40
    assert result["source"] == str(tree)
    assert result["two_workers_stamps_per_s"] is None
    assert sorted(tree.rglob("*")) == before
    assert not list(tmp_path.glob("lensprep-bench-*"))


def test_rows_come_from_all_over_the_source(tmp_path):
    tree = tiny_tree(tmp_path, rows=400, files_per_split=4, row_group_rows=7)
    table = bench.some_rows(str(tree), 150)
    assert 140 <= table.num_rows <= 150  # some groups may be smaller than their share
    known = set(tiny_table(400)["task_id"].to_pylist())
    assert len(set(table["task_id"].to_pylist()) & known) == table.num_rows
    assert set(table["region_split"].to_pylist()) == {"train", "val", "test"}


def test_small_source_gives_all_it_has(tmp_path):
    tree = tiny_tree(tmp_path, rows=60)
    assert bench.some_rows(str(tree), 4096).num_rows == 60
    assert bench.some_rows(str(tree), 59).num_rows == 59


def test_missing_source_is_an_input_error(tmp_path):
    with pytest.raises(InputError):
        run_bench(str(tmp_path / "nothing"), rows=10, rounds=1)


@pytest.mark.parametrize("numbers", [{"rows": 0}, {"rounds": 0}])
def test_nothing_to_measure_is_refused(numbers):
    with pytest.raises(ValueError, match="at least 1"):
        run_bench(**numbers)


def test_progress_is_told_of_every_round(told, result):
    assert told[:5] == [
        ("rows", 0, 96), ("rows", 96, 96),
        ("rounds", 0, 2), ("rounds", 1, 2), ("rounds", 2, 2),
    ]  # fmt: skip
    warm_up = [("workers", 0, 2)]
    several = warm_up + [("workers", done, 2) for done in range(3)]
    assert told[5:] == (several if default_workers() > 1 else [])


def test_parent_keeps_its_cores():
    before = os.sched_getaffinity(0)
    with bench._pinned():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


# -- the seed path does the same work --------------------------------------------------------------


def stamps_of_tars(folder):
    """Task id -> pixels, from the tars of the seed path."""
    stamps = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".stamp.npy"):
                    data = io.BytesIO(tar.extractfile(member).read())
                    stamps[member.name.split(".")[0]] = np.load(data)
    return stamps


def test_seed_path_stores_the_same_bits_as_convert(tmp_path):
    table = tiny_table(48)
    flat = write_tree(tmp_path / "flat", table, hive=False)
    assert seed_path(flat, tmp_path / "seed") == 48
    convert(str(flat), str(tmp_path / "ours"), ConvertConfig(normalize="mad_stamp"), workers=1)
    dataset = Dataset.open(tmp_path / "ours")
    seed = stamps_of_tars(tmp_path / "seed")
    found = 0
    for split, info in dataset.manifest.splits.items():
        task_ids = dataset.read_sidecar(split, ["task_id"])["task_id"].to_pylist()
        pixels = dataset.read_pixels(split, np.arange(info.rows))
        for task_id, stamp in zip(task_ids, pixels, strict=True):
            np.testing.assert_array_equal(stamp.view(np.uint16), seed[task_id].view(np.uint16))
            found += 1
    assert found == 48


def test_seed_path_passes_over_what_it_cannot_read(tmp_path):
    blobs = [BAD[name]()[0] for name in ("null", "empty", "half", "no_z_band", "96_pixels")]
    good = tiny_table(3)["stamp_npz"].to_pylist()
    table = tiny_table(8, stamp_npz=[*blobs[:4], *good, None])
    flat = tmp_path / "flat"
    flat.mkdir()
    pq.write_table(table, flat / "part-0.parquet")
    assert seed_path(flat, tmp_path / "out") == 3


def test_floor_inflates_every_deflated_band_once():
    blobs = pa.chunked_array([tiny_table(5)["stamp_npz"].combine_chunks(), pa.array([None, b"x"])])
    streams = list(bench._streams(blobs))
    assert len(streams) == 15
    assert {size for _, size in streams} == {16512}
    bench._inflate(streams)


@pytest.mark.slow
@needs_real_cutouts
def test_bounds_hold_on_real_cutouts(tmp_path):
    """The project's own bounds: 5 times the seed path, 2.2 times the inflate floor."""
    result = run_bench(str(real_tree(tmp_path, 8192)), rounds=5)
    assert result["rows"] == 8192
    assert result["speedup"] >= 5
    assert result["over_floor"] <= 2.2
