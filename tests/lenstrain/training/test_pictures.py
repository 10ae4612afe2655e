"""Pictures of a validation: the right stamps, in the right order, in the right colours."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from lensprep.dataset import Dataset, NormalizationSpec
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import read_statistics
from lenstrain.data import StampLoader
from lenstrain.training.checkpoint import load_model
from lenstrain.training.distributed import Context
from lenstrain.training.pictures import (
    BINS,
    STRIP,
    captioned,
    hardest,
    montage,
    reliability,
    reliability_picture,
    show_validation,
    stamp_pictures,
    stamp_statistics,
)
from lenstrain.training.train import train
from lenstrain.training.validate import score_split
from tests.boards import Board
from tests.datasets import PAIR, tiny_dataset


def test_stamps_of_another_survey_are_shown_in_its_bands(tmp_path):
    data = Dataset.open(tiny_dataset(tmp_path, 20, geometry=PAIR))
    rows = np.array([17, 3])
    found = stamp_pictures(data, "train", rows)
    assert np.array_equal(found, lupton_rgb(data.read_pixels("train", rows), PAIR))
    assert stamp_statistics(data, "train", rows).shape == (2, 2, len(PAIR.bands))
    assert montage(found, columns=2).shape == (PAIR.side, 2 * PAIR.side, 3)


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


def test_a_caption_stands_below_its_picture_and_never_in_the_next():
    pictures = np.zeros((2, 8, 20, 3), np.uint8)
    texts = ["1: -2.50 and more than there is room for", ""]
    page = captioned(pictures, texts, "title", columns=2)
    assert page.shape == (8 + 2 * STRIP, 40, 3)
    assert page[:STRIP].any()
    assert not page[STRIP : STRIP + 8].any()
    assert page[STRIP + 8 :, :20].any()
    assert not page[STRIP + 8 :, 20:].any()


def test_pictures_are_of_the_rows_asked_for_across_shards(dataset):
    data = Dataset.open(dataset)
    rows = np.array([70, 3, 33])
    found = stamp_pictures(data, "train", rows)
    # tiny_dataset has median 0 and scale 1: the stored pixels are the fluxes.
    expected = lupton_rgb(data.read_pixels("train", rows).astype(np.float32))
    assert np.array_equal(found, expected)
    assert not np.array_equal(found[0], found[1])
    whole = read_statistics(data.read_sidecar("train").take(pa.array(rows)))
    assert np.array_equal(stamp_statistics(data, "train", rows), whole)


def test_stamps_of_a_normalisation_that_is_not_known_are_not_drawn(tmp_path):
    spec = NormalizationSpec(mode="of_a_later_version", clip=10.0)
    data = Dataset.open(tiny_dataset(tmp_path, {"val": 20}, normalization=spec))
    logits = np.linspace(-1, 1, 20, dtype=np.float32)
    with SummaryWriter(str(tmp_path / "log")) as board:
        show_validation(board, 1, 1, data, "val", logits, np.arange(20, dtype=np.int8) % 2)
    assert Board(tmp_path / "log").tags("images") == ["validation/reliability"]


@pytest.fixture(scope="module")
def finished(dataset, make_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures") / "run"
    train(dataset, make_config("optim.ema_decay=0.5", "train.pictures=true"), out)
    return out


@pytest.fixture(scope="module")
def events(finished):
    """What TensorBoard itself reads from the run's event file."""
    return Board(finished / "tensorboard")


@pytest.fixture(scope="module")
def last_scores(finished, dataset):
    """Logits and labels of the last validation, scored anew from the last checkpoint."""
    model, _ = load_model(finished / "checkpoints" / "last.pt")
    loader = StampLoader(dataset, "val", 18, shuffle=None)
    return score_split(model, loader, 40, Context(device=torch.device("cpu")))


def test_tensorboard_has_every_number_of_the_records(finished, events):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    told = {(f"{r['kind']}/{name}", r["step"]): value for r in records for name, value in r.items()}
    expected = {
        place: value
        for place, value in told.items()
        if isinstance(value, int | float) and not place[0].endswith(("/step", "/epoch"))
    }
    shown = {(tag, step): value for tag, found in events.scalars().items() for step, value in found}
    assert shown == pytest.approx(expected, rel=1e-6)
    names = {tag for tag, _ in shown}
    assert {"interval/loss", "interval/lr", "interval/grad_norm", "interval/clipped_share"} <= names
    assert {"interval/data_wait_share", "epoch/auroc", "epoch/nll", "epoch/tpr_at_fpr"} <= names


def test_tensorboard_has_curves_and_pictures_of_every_epoch(events):
    for tag in ("reliability", "hardest_positives", "hardest_negatives"):
        assert [step for step, _ in events.pictures(f"validation/{tag}")] == [8, 16]
    assert [step for step, _ in events.tensors("validation/pr")] == [8, 16]


@pytest.mark.parametrize(("label", "name"), [(1, "positives"), (0, "negatives")])
def test_the_hardest_stamps_are_those_of_that_validation(events, last_scores, dataset, label, name):
    _, shown = events.pictures(f"validation/hardest_{name}")[-1]
    rows = hardest(*last_scores, label)
    assert len(rows) == 20
    stamps = stamp_pictures(Dataset.open(dataset), "val", rows)
    tall = 64 + STRIP
    for place, stamp in enumerate(stamps):
        top, left = STRIP + place // 8 * tall, place % 8 * 64
        assert np.array_equal(shown[top : top + 64, left : left + 64], stamp)
        assert shown[top + 64 : top + tall, left : left + 64].max() > 200  # its label and logit
    assert shown[:STRIP].max() > 200
    told = events.metadata(f"validation/hardest_{name}").summary_description
    assert ("lenses with the lowest" if label else "non-lenses with the highest") in told


def test_the_reliability_is_that_of_that_validation(events, last_scores, dataset):
    _, shown = events.pictures("validation/reliability")[-1]
    region = Dataset.open(dataset).read_sidecar("val", ["region_id"])["region_id"].to_numpy()
    assert np.array_equal(shown, reliability_picture(reliability(*last_scores, region)))


def test_reliability_has_a_point_for_each_bin_of_equal_count():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 3000).astype(np.float32)
    labels = (rng.random(3000) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    table = reliability(logits, labels, rng.integers(100, 160, 3000))
    assert table["n"].tolist() == [3000 / BINS] * BINS
    assert np.abs(table["observed"] - table["mean_probability"]).max() < 0.12
    assert (table["low"] < table["high"]).all()


def test_the_curve_of_precision_and_recall_is_that_of_that_validation(events, last_scores):
    logits, labels = last_scores
    _, curve = events.tensors("validation/pr")[-1]
    tp, fp, tn, fn, precision, recall = curve
    assert tp[0] + fn[0] == labels.sum()
    assert fp[0] + tn[0] == len(labels) - labels.sum()
    middle = 63  # of 127 thresholds: one half
    flagged = logits >= 0
    assert tp[middle] == (flagged & (labels == 1)).sum()
    assert fp[middle] == (flagged & (labels == 0)).sum()
    assert recall[middle] == pytest.approx(tp[middle] / labels.sum())
    assert precision[middle] == pytest.approx(tp[middle] / max(flagged.sum(), 1), abs=1e-6)


def test_tensorboard_has_the_configuration_as_hyperparameters(events):
    content = events.events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["optim.lr"].number_value == 2e-3
    assert start.hparams["model.arch"].string_value == "resnet_small"


def test_everything_is_described_where_tensorboard_reads_it(events):
    """Its data server has the description of a tensor, and drops that of other values."""
    tags = [*events.tags("scalars"), *events.tags("images"), *events.tags("pr_curves")]
    told = {tag: events.metadata(tag).summary_description for tag in tags}
    assert {"interval/loss", "epoch/auroc", "validation/pr", "validation/reliability"} <= {*told}
    assert not [tag for tag, text in told.items() if not text]
    assert told["epoch/nll"] == (
        "Negative log likelihood [nat], of the validation split; lower is better. "
        "With counterfactuals it may rise without harm; `lenstrain evaluate` calibrates."
    )


def test_a_run_without_pictures_has_all_its_numbers(events, dataset, make_config, tmp_path):
    train(dataset, make_config("optim.ema_decay=0.5", "train.epochs=1"), tmp_path / "plain")
    found = Board(tmp_path / "plain" / "tensorboard")
    assert found.tags("images") == []
    assert found.tags("scalars") == events.tags("scalars")
