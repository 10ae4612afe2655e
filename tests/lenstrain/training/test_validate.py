"""Scoring a split: every row once, and the metrics that steer a run."""

import numpy as np
import pytest
import torch

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lensprep.errors import ConfigError, DatasetError
from lenstrain.config import Config
from lenstrain.data import Batch, StampLoader
from lenstrain.training.distributed import Context
from lenstrain.training.run import build_run, check_input
from lenstrain.training.signals import StopSignals
from lenstrain.training.step import choose_amp
from lenstrain.training.train import validate
from lenstrain.training.validate import (
    at_precision,
    full_float32,
    require_precision,
    score_split,
    validation_metrics,
    validation_precision,
)

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


def test_tf32_is_on_for_tf32_alone():
    for precision in ("float32", "tf32", "bf16"):
        with at_precision(precision, CPU.device):
            assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


@pytest.mark.parametrize(
    ("device", "overrides", "expected"),
    [
        ("cpu", [], "float32"),
        ("cpu", ["train.amp=bf16"], "bf16"),
        ("cpu", ["train.amp=bf16", "eval.amp=off"], "float32"),
        ("cpu", ["eval.amp=bf16"], "bf16"),
        ("cuda", ["train.amp=bf16"], "bf16"),
        ("cuda", ["train.amp=fp16"], "fp16"),
        ("cuda", ["train.amp=off"], "tf32"),
        ("cuda", ["train.amp=off", "train.tf32=false"], "float32"),
        ("cuda", ["train.amp=off", "eval.amp=off"], "float32"),
        ("cuda", ["train.amp=fp16", "eval.amp=off"], "float32"),
    ],
)
def test_validation_has_the_precision_of_training_unless_told_otherwise(
    device, overrides, expected
):
    config, place = load_config(Config, None, overrides), torch.device(device)
    amp_dtype = choose_amp(config.train.amp, place)
    assert validation_precision(config, amp_dtype, place) == expected


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_what_a_cpu_does_not_have_is_refused(precision):
    message = f"Precision {precision} needs a GPU such as an A100 or a later one, .* is a CPU"
    with pytest.raises(ConfigError, match=message):
        require_precision(precision, CPU.device)
    require_precision("bf16", CPU.device)


def test_validating_in_bf16_is_refused_on_a_gpu_without_it(dataset, make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    context = Context(device=torch.device("cuda", 0))
    with pytest.raises(
        ConfigError, match=r"this is another \(Tesla V100\)\. Set eval\.amp to auto"
    ):
        check_input(Dataset.open(dataset), make_config("eval.amp=bf16"), context)
    check_input(Dataset.open(dataset), make_config(), context)


@pytest.fixture
def validated(dataset, make_config, tmp_path):
    """Validates a fresh network under some options; its logits, and those of the bare network."""

    def make(*overrides, compiled=None):
        run = build_run(Dataset.open(dataset), make_config(*overrides), tmp_path, CPU, None)
        if compiled is not None:
            run.learner.network = torch.compile(run.learner.model, backend=compiled, dynamic=False)
        found = [validate(run, StopSignals())[0] for _ in range(2)][1]
        pixels = run.dataset.read_pixels("val", np.arange(40))
        with torch.inference_mode():
            plain = run.learner.model.eval()(torch.from_numpy(pixels).float()).numpy()
        run.close()
        return found, plain

    return make


def test_validation_computes_in_that_precision(validated):
    rounded, plain = validated("train.amp=bf16")
    assert 1e-6 < np.abs(rounded - plain).max() < 0.1 * np.ptp(plain)
    exact, plain = validated("train.amp=bf16", "eval.amp=off")
    np.testing.assert_allclose(exact, plain, rtol=0, atol=1e-6)


def test_a_compiled_network_validates_in_one_graph(validated):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled, plain = validated("optim.ema_decay=0.9", compiled=count)  # averaged weights come in
    assert len(graphs) == 1  # of two validations of three batches, the last one filled
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-6)
