"""Scoring a split: every row once, and the metrics that steer a run."""

import numpy as np
import pytest
import torch

from lensprep.dataset import Dataset
from lensprep.errors import DatasetError
from lenstrain.data import Batch, StampLoader
from lenstrain.training.distributed import Context
from lenstrain.training.validate import full_float32, score_split, validation_metrics

CPU = Context(device=torch.device("cpu"))


class FirstPixel(torch.nn.Module):
    def forward(self, x_BCHW):
        return x_BCHW[:, 0, 0, 0]


def test_every_row_is_scored_in_split_order(dataset):
    rows = Dataset.open(dataset).split("val").rows
    loader = StampLoader(dataset, "val", batch_size=12, shuffle=None)
    logits, labels = score_split(FirstPixel(), loader, rows, CPU)
    np.testing.assert_array_equal(logits, np.arange(40, dtype=np.float32))
    np.testing.assert_array_equal(labels, np.arange(40) % 2)
    assert logits.dtype == np.float32


def batch(index, weight=None):
    n = len(index)
    return Batch(
        pixels=torch.zeros(n, 3, 64, 64, dtype=torch.float16),
        labels=torch.zeros(n, dtype=torch.int64),
        index=torch.tensor(index),
        weight=torch.ones(n) if weight is None else torch.tensor(weight),
    )


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([batch([0, 1, 2])], "the first is row 3, 0 times"),
        ([batch([0, 1, 2]), batch([2, 3])], "the first is row 2, 2 times"),
        ([batch([0, 1]), batch([2, 3], [1.0, 0.0])], "the first is row 3, 0 times"),
    ],
)
def test_a_row_that_is_missing_or_comes_twice_is_an_error(batches, message):
    with pytest.raises(DatasetError, match=message):
        score_split(FirstPixel(), batches, 4, CPU)


def test_fillers_are_left_out():
    logits, _ = score_split(FirstPixel(), [batch([0, 1, 0], [1.0, 1.0, 0.0])], 2, CPU)
    assert len(logits) == 2


def test_metrics_count_ties_half_and_take_the_nll_without_smoothing():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.int8)
    logits = np.array([0.9, 0.8, 0.7, 0.4, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1], np.float32)
    found = validation_metrics(logits, labels, fpr=0.17)
    assert found["auroc"] == pytest.approx(0.8333333, abs=1e-6)
    assert found["average_precision"] == pytest.approx(0.7470238, abs=1e-6)
    assert found["tpr_at_fpr"] == 0.75
    p = 1 / (1 + np.exp(-logits.astype(float)))
    assert found["nll"] == pytest.approx(-np.log(np.where(labels, p, 1 - p)).mean(), rel=1e-6)


def test_logits_that_are_not_finite_have_no_metrics():
    labels = np.array([0, 1], np.int8)
    found = validation_metrics(np.array([0.0, np.nan], np.float32), labels, 0.1)
    assert all(np.isnan(value) for value in found.values())


def test_tf32_is_off_inside_and_as_before_outside():
    before = torch.backends.cudnn.allow_tf32
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
