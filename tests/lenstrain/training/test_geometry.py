"""Stamps of other surveys than DECaLS: trained on, resumed, scored; and never mixed up."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lensprep.dataset import DECALS, Dataset
from lensprep.dataset.writer import write_dataset
from lensprep.errors import CheckpointError, ConfigError
from lenstrain.scoretable import read_metadata
from lenstrain.scoring.infer import infer
from lenstrain.training.checkpoint import load_checkpoint, load_model
from lenstrain.training.train import train
from tests.datasets import tiny_dataset
from tests.lenstrain.geometries import GEOMETRIES, UGRIZY, VIS
from tests.lenstrain.training.test_train import assert_equal, stop_at

ROWS = {"train": 60, "val": 24, "test": 20}


@pytest.fixture(scope="module", params=GEOMETRIES, ids=lambda geometry: geometry.survey)
def geometry(request):
    return request.param


@pytest.fixture(scope="module")
def root(geometry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny_dataset(folder, ROWS, shard_rows=25, signal=True, geometry=geometry)


@pytest.fixture(scope="module")
def config(geometry, make_config):
    crop = 33 if geometry.side % 2 else 32
    return make_config(f"model.crop={crop}", "data.shift_px=1", "optim.ema_decay=0.9")


@pytest.fixture(scope="module")
def run(root, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert train(str(root), config, out)["status"] == "completed"
    return out


def test_a_run_on_any_survey_resumes_to_the_same_bits(root, config, run, tmp_path):
    out = tmp_path / "cut"
    assert train(str(root), config, out, progress=stop_at(3))["signal"] == signal.SIGTERM
    assert train(str(root), config, out, resume=True)["status"] == "completed"
    one, two = (load_checkpoint(r / "checkpoints" / "last.pt") for r in (run, out))
    assert_equal(one, two)


def test_a_checkpoint_knows_its_stamps_and_scores_say_so(root, geometry, run, tmp_path):
    best = run / "checkpoints" / "best.pt"
    model, meta = load_model(best)
    assert meta["geometry"] == geometry.to_dict()
    out = tmp_path / "scores.parquet"
    infer(best, root, split="test", out=out, batch_size=8, device="cpu")
    pixels = torch.from_numpy(Dataset.open(root).read_pixels("test", np.arange(ROWS["test"])))
    with torch.inference_mode():
        expected = model(pixels.float())
    np.testing.assert_allclose(pq.read_table(out)["logit"], expected, rtol=0, atol=1e-5)
    assert read_metadata(out)["geometry"] == geometry.to_dict()


def test_the_whole_stamp_is_seen_without_a_crop(geometry, root, make_config, tmp_path):
    config = make_config("train.epochs=1", "model.width=8")
    config = replace(config, model=replace(config.model, crop=None))
    train(str(root), config, tmp_path / "run")
    out = tmp_path / "s.parquet"
    best = tmp_path / "run/checkpoints/best.pt"
    infer(best, root, split="val", out=out, device="cpu", tta=True)
    assert pq.read_table(out).num_rows == ROWS["val"]


def altered(geometry):
    yield "survey", replace(geometry, survey="another")
    yield "scale", replace(geometry, pixel_scale_arcsec=0.3)
    yield "side", replace(geometry, side=geometry.side + 2)
    yield "bands", replace(geometry, bands=(*geometry.bands[1:], "extra"), reference_band="extra")
    if len(geometry.bands) > 1:
        yield "order", replace(geometry, bands=geometry.bands[::-1])
    yield "zero point", replace(geometry, zero_point=1.0)


def test_stamps_that_differ_in_anything_are_refused(geometry, run, config, tmp_path):
    best = run / "checkpoints" / "best.pt"
    for name, other in [*altered(geometry), ("decals", DECALS)]:
        root = tiny_dataset(tmp_path, {"train": 4, "val": 4}, name=name, geometry=other)
        for what in (
            lambda root=root: infer(best, root, out=tmp_path / "s.parquet", device="cpu"),
            lambda root=root: train(str(root), config, run, resume=True),
        ):
            with pytest.raises(CheckpointError, match="was trained on stamps of") as refused:
                what()
            assert str(geometry) in str(refused.value)
            assert f"holds {other}" in str(refused.value)
            assert "\n" not in str(refused.value)
            assert (", of another zero_point" in str(refused.value)) == (name == "zero point")
    assert not (tmp_path / "s.parquet").exists()


def test_a_checkpoint_of_decals_without_a_geometry_is_used_on_decals_alone(
    dataset, make_config, tmp_path
):
    train(dataset, make_config("train.epochs=1"), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    content = torch.load(path, weights_only=True)
    del content["geometry"]  # as older versions wrote it
    torch.save(content, path)
    infer(path, dataset, out=tmp_path / "s.parquet", device="cpu")
    assert read_metadata(tmp_path / "s.parquet")["geometry"] == DECALS.to_dict()
    root = tiny_dataset(tmp_path, {"val": 4}, geometry=VIS)
    with pytest.raises(CheckpointError, match=r"stamps of decals, grz, .* holds vis"):
        infer(path, root, out=tmp_path / "t.parquet", device="cpu")
    torch.save(content | {"geometry": {"bands": "grz"}}, path)
    with pytest.raises(
        CheckpointError, match=r"best\.pt is damaged: geometry has no entry 'survey'"
    ):
        load_checkpoint(path)


def test_a_run_with_a_window_that_does_not_fit_begins_nothing(make_config, tmp_path):
    root = tiny_dataset(tmp_path, {"train": 4, "val": 4}, geometry=UGRIZY)
    with pytest.raises(ConfigError, match=r"model\.crop = 64 is no central window"):
        train(str(root), make_config("model.crop=64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_columns_of_catalogues_are_in_the_scores(run, root, geometry, tmp_path):
    other = tmp_path / "mixed"
    columns = {"origin": ["real", None], "kind": ["ring", None], "grade": ["A", None]}
    write_with(other, root, columns)
    out = tmp_path / "s.parquet"
    infer(run / "checkpoints" / "best.pt", other, split="test", out=out, device="cpu")
    table = pq.read_table(out)
    for name, values in columns.items():
        assert table[name].to_pylist() == values * (ROWS["test"] // 2)


def write_with(out, root, columns):
    """The test split of a dataset, with further columns in its sidecar."""
    dataset = Dataset.open(root)
    table = dataset.read_sidecar("test").drop_columns(["payload_crc32"])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values * (table.num_rows // 2), pa.string()))
    pixels = dataset.read_pixels("test", np.arange(table.num_rows))
    spec = dataset.manifest.normalization
    parts = {"test": (pixels, table)}
    write_dataset(out, parts, spec, shard_rows=8, geometry=dataset.geometry)
