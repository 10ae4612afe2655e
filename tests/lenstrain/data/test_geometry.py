"""The loader on stamps of other surveys than DECaLS: from a disk, a store, a cache, stock tars."""

from __future__ import annotations

import io
import tarfile
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from lensprep.dataset import DECALS, PAYLOAD_OFFSET, Dataset
from lensprep.errors import ConfigError, ShardError
from lensprep.transfer import upload
from lenstrain.data import CacheOptions, StampLoader
from lenstrain.data.batch import PixelPool
from lenstrain.data.sources.cells import MOST_BYTES, cell_rows, cut_into_cells
from lenstrain.data.sources.mappedrows import (
    BYTES_AHEAD,
    ROWS_AHEAD,
    STEPS_ALERT,
    rows_ahead,
)
from tests.datasets import tiny_dataset
from tests.lenstrain.geometries import GEOMETRIES, UGRIZY, VIS

ROWS, SHARD_ROWS = 300, 130


@pytest.fixture(scope="module", params=GEOMETRIES, ids=lambda geometry: geometry.survey)
def geometry(request):
    return request.param


@pytest.fixture(scope="module")
def root(geometry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny_dataset(folder, ROWS, SHARD_ROWS, geometry=geometry)


@pytest.fixture(scope="module")
def stored(root):
    dataset = Dataset.open(root)
    shards = dataset.split("train").shards
    return torch.from_numpy(np.concatenate([dataset.map_shard(shard) for shard in shards]))


def assert_epoch_is(loader, stored):
    seen = []
    for batch in loader:
        real = batch.weight > 0
        assert batch.pixels.shape[1:] == stored.shape[1:]
        assert torch.equal(batch.pixels[real], stored[batch.index[real]])
        seen += batch.index[real].tolist()
    assert sorted(seen) == list(range(len(stored)))


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_a_disk_gives_every_stamp_as_it_was_written(root, stored, geometry, shuffle):
    with closing(StampLoader(root, batch_size=32, shuffle=shuffle, verify="crc")) as loader:
        assert loader.geometry == geometry
        assert_epoch_is(loader, stored)


def test_rows_that_come_from_a_disk_are_asked_for_and_copied_in_pieces(root, stored):
    with closing(StampLoader(root, batch_size=150)) as loader:
        loader.source._rows.alert = STEPS_ALERT
        assert_epoch_is(loader, stored)


def test_a_changed_stamp_is_found_where_it_lies(geometry, tmp_path):
    root = tiny_dataset(tmp_path, 40, 16, geometry=geometry)
    offset = 3 * geometry.stride + PAYLOAD_OFFSET
    with (root / "train/train-000001.tar").open("r+b") as file:
        file.seek(offset + geometry.payload_bytes - 1)
        last = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([last[0] ^ 1]))
    with closing(StampLoader(root, batch_size=8, shuffle=None, verify="crc")) as loader:
        with pytest.raises(ShardError, match=f"000001.tar: the stamp at offset {offset} is not"):
            list(loader)
        assert loader.source.locate(16 + 3) == (str(root / "train/train-000001.tar"), offset)


@pytest.mark.parametrize("cached", [False, True])
def test_a_store_and_a_cache_give_the_same_stamps(root, stored, s3, tmp_path, cached):
    upload(root, s3.uri, s3.options())
    cache = {"cache_dir": tmp_path / "cache", "cache": CacheOptions(reserve_bytes=0)}
    options = cache if cached else {}  # of a disk that may be nearly full
    with closing(StampLoader(s3.uri, batch_size=32, s3=s3.options(), **options)) as loader:
        assert_epoch_is(loader, stored)
        assert loader.source.local.complete == cached
        counted = loader.source.describe()
        records = ROWS * Dataset.open(root).geometry.stride
        assert counted["bytes"] == (0 if cached else records)


def test_shards_of_any_survey_are_stock_tars_too(root, stored):
    first = root / "train/train-000000.tar"
    with pytest.warns(UserWarning, match="is a shard of the dataset"):
        opened = StampLoader(first, batch_size=13)
    with closing(opened) as loader:
        assert loader.geometry is None
        assert_epoch_is(loader, stored[:SHARD_ROWS])


def test_a_stock_tar_holds_stamps_of_one_shape(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for key, shape in (("a", (5, 41, 41)), ("b", (5, 43, 43))):
            content = io.BytesIO()
            np.save(content, np.zeros(shape, np.float32))
            for name, data in ((f"{key}.npy", content.getvalue()), (f"{key}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with pytest.warns(UserWarning, match="is not a converted dataset"):
        opened = StampLoader(path, batch_size=1, shuffle=None)
    with closing(opened) as loader:
        batches = iter(loader)
        assert next(batches).pixels.shape == (1, 5, 41, 41)
        with pytest.raises(ShardError, match=r"'b' .* has shape \(5, 43, 43\), not \(5, 41, 41\)"):
            next(batches)


def test_a_budget_is_counted_in_the_stamps_of_the_dataset(root, geometry):
    budget = 2 * 64 * geometry.payload_bytes
    with closing(StampLoader(root, batch_size=64, memory_budget=budget)) as loader:
        assert loader.depth == 1
    with pytest.raises(ConfigError, match="holds less than two batches of 64 stamps"):
        StampLoader(root, batch_size=64, memory_budget=budget - 1)


def test_memory_is_lent_in_the_shape_of_the_stamps(geometry):
    assert PixelPool(3, geometry.shape).lend().shape == (3, *geometry.shape)


def test_cells_of_large_records_are_parts_of_blocks():
    large = replace(UGRIZY, side=256)
    rows = cell_rows(large.stride)
    assert rows * large.stride <= MOST_BYTES < 2 * rows * large.stride
    assert [cell_rows(g.stride) for g in (DECALS, VIS, UGRIZY)] == [256] * 3
    cells = cut_into_cells(np.array([0, 300, 300, 310]), large.stride)
    assert cells.bounds.tolist() == [*range(0, 300, rows), 300, 310]
    assert cells.first.tolist() == [*range(0, 300, rows), 0]
    assert cells.most_bytes == rows * large.stride


def test_as_many_bytes_are_on_their_way_of_large_stamps():
    assert rows_ahead(DECALS) == rows_ahead(VIS) == ROWS_AHEAD
    large = replace(VIS, side=256)
    assert rows_ahead(large) == BYTES_AHEAD // large.payload_bytes == 192
