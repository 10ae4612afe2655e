"""Pictures of a validation: the right stamps, in the right order, in the right colours."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lensprep.dataset import Dataset
from lensprep.dataset.rgb import lupton_rgb
from lenstrain.training.pictures import hardest, montage, read_columns, stamp_pictures
from lenstrain.training.train import train


def test_the_hardest_are_the_most_wrong_first():
    logits = np.array([3.0, -2.0, 5.0, -4.0, 0.0, 5.0], np.float32)
    labels = np.array([1, 1, 0, 1, 0, 0], np.int8)
    assert hardest(logits, labels, 1).tolist() == [3, 1, 0]
    assert hardest(logits, labels, 0).tolist() == [2, 5, 4]  # a tie goes by row
    assert hardest(logits, labels, 0, 1).tolist() == [2]


def test_a_montage_reads_like_a_page():
    pictures = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    page = montage(pictures + 1, columns=2)
    assert page.shape == (4, 4, 3)
    assert page[::2, ::2, 0].tolist() == [[1, 2], [3, 0]]


def test_pictures_are_of_the_rows_asked_for_across_shards(dataset):
    data = Dataset.open(dataset)
    rows = np.array([70, 3, 33])
    found = stamp_pictures(data, "train", rows)
    # tiny_dataset has median 0 and scale 1: the stored pixels are the fluxes.
    expected = lupton_rgb(data.read_pixels("train", rows).astype(np.float32))
    assert np.array_equal(found, expected)
    assert not np.array_equal(found[0], found[1])
    table = data.read_sidecar("train", ["scale_g", "scale_r", "scale_z"])
    whole = np.stack([c.to_numpy() for c in table.columns], 1)[rows]
    assert np.array_equal(read_columns(data, "train", rows, "scale"), whole)


@pytest.fixture(scope="module")
def events(dataset, make_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures") / "run"
    train(dataset, make_config(), out)
    return EventAccumulator(str(out / "tensorboard"), {"images": 0, "tensors": 0}).Reload()


def test_tensorboard_has_curves_and_pictures_of_every_epoch(events):
    tags = ("reliability", "hardest_positives", "hardest_negatives")
    for tag in tags:
        shown = events.Images(f"validation/{tag}")
        assert [image.step for image in shown] == [8, 16]
    assert (shown[0].width, shown[0].height) == (8 * 64, 3 * 64)  # 20 negatives
    assert [curve.step for curve in events.Tensors("validation/pr")] == [8, 16]


def test_tensorboard_has_the_configuration_as_hyperparameters(events):
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["optim.lr"].number_value == 2e-3
    assert start.hparams["model.arch"].string_value == "resnet_small"
