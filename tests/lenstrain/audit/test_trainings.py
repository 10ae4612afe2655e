"""The short trainings: they pass what is sound, and fail on what was broken for them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from lenstrain.audit import trainings
from lenstrain.audit.config import AuditConfig, RunThresholds
from lenstrain.audit.finding import NotRunError
from lenstrain.config import Config, DataConfig, ModelConfig, TrainConfig
from lenstrain.training.step import check_precision
from tests.lenstrain.audit.conftest import SPLITS, make_pixels, make_table

SMALL = ModelConfig(arch="resnet_small", width=16, blocks=(1, 1), crop=16)


pytestmark = pytest.mark.usefixtures("one_thread")


def allowed(evidence):
    evidence.run_checks = True
    evidence.config = Config(model=SMALL)
    return evidence


@pytest.mark.parametrize("name", ["overfit_64", "permuted_labels", "resume", "ddp_eval"])
def test_trainings_wait_to_be_asked_for(evidence_of, config, name):
    with pytest.raises(NotRunError, match="--run-checks"):
        getattr(trainings, f"check_{name}")(evidence_of(), config)


def test_a_working_network_overfits_64_stamps(evidence_of, config):
    found = trainings.check_overfit_64(allowed(evidence_of(pixels={})), config)
    assert found.passed
    assert found.measured["stamps"] == 64


class Precise(torch.nn.Module):
    """Notes whether TF32 is allowed when it runs, and when its gradient does."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 1)
        self.allowed = set()

    def note(self, *_):
        self.allowed.add(torch.backends.cudnn.allow_tf32)

    def forward(self, x_BCHW):
        self.note()
        logit_B = self.last(x_BCHW.mean((2, 3)))[:, 0]
        logit_B.register_hook(self.note)
        return logit_B


def test_short_trainings_are_in_full_float32_and_leave_the_generator_alone(config, monkeypatch):
    model = Precise()
    monkeypatch.setattr(trainings, "build_model", lambda *_: model)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    state = torch.get_rng_state()
    pixels, labels = make_pixels([0, 1]), np.array([0, 1])
    trainings.fit(SMALL, pixels, labels, 2, config)
    assert model.allowed == {False}
    assert torch.backends.cudnn.allow_tf32
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_stamps_with_both_labels_cannot_be_overfitted(evidence_of):
    """Labels that contradict the pixels, as a shuffled column would."""
    same = np.repeat(make_pixels([0]), 120, axis=0)
    config = AuditConfig(run=RunThresholds(overfit_steps=30))
    found = trainings.check_overfit_64(allowed(evidence_of(pixels={"train": same})), config)
    assert not found.passed
    assert found.measured["loss"] > 0.6
    assert found.measured["steps"] == 30


def test_a_run_in_fp16_is_checked_on_the_cpu_in_another_precision():
    config = Config(train=TrainConfig(amp="fp16"))
    train = trainings.short_config(config).train
    check_precision(train.amp, train.device)  # would raise


def test_a_short_training_asks_for_no_row_that_a_part_may_lack():
    data = DataConfig(where="ebv < 0.1", limit=5, sample_weights="h.parquet",
                      counterfactual_share=0.3)  # fmt: skip
    short = trainings.short_config(Config(data=data)).data
    assert (short.where, short.limit, short.sample_weights) == (None, None, None)
    assert short.counterfactual_share == 0.0


def test_random_labels_stay_unknown(evidence_of):
    config = AuditConfig(run=RunThresholds(permuted_steps=40))
    found = trainings.check_permuted_labels(allowed(evidence_of(pixels={})), config)
    assert found.passed
    assert found.measured["val"] == 120


def test_images_of_train_in_val_are_remembered(evidence_of):
    labels = make_table()["label"].to_numpy()
    pixels = make_pixels(labels)
    evidence = evidence_of(
        pixels={"train": pixels, "val": pixels},
        val={"pixel_hash": make_table()["pixel_hash"].to_pylist()},
    )
    config = AuditConfig(run=RunThresholds(permuted_steps=120))
    found = trainings.check_permuted_labels(allowed(evidence), config)
    assert not found.passed
    assert found.measured["auroc"] > 0.7


def test_an_image_has_one_random_label_wherever_it_comes():
    train = np.array([5, 6, 7, 8, 5], np.uint64)
    val = np.array([8, 9, 6], np.uint64)
    one, other = trainings.random_labels(train, val, 0)
    assert one[0] == one[4]
    assert other[0] == one[3]
    assert other[2] == one[1]
    assert set(np.concatenate([one, other]).tolist()) == {0, 1}


def test_a_resumed_run_ends_in_the_same_bits(evidence_of):
    config = AuditConfig(run=RunThresholds(check_rows=81))
    evidence = allowed(evidence_of(pixels={}))
    evidence.config = replace(evidence.config, optim=replace(evidence.config.optim, ema_decay=0.9))
    found = trainings.check_resume(evidence, config)
    assert found.passed, found.detail
    assert found.measured["steps"] == 6


def test_states_that_differ_in_one_bit_are_told_apart():
    state = {
        "model": {"a": torch.zeros(3)}, "ema": None, "scheduler": {"k": 1}, "step": 5,
        "optimizer": {"state": [torch.ones(2)]},
    }  # fmt: skip
    assert trainings.different_tensors(state, state) == []
    other = state | {"optimizer": {"state": [torch.tensor([1.0, 1.0000001])]}, "step": 6}
    assert trainings.different_tensors(state, other) == ["optimizer/state/0", "step"]
    assert trainings.different_tensors(state, state | {"model": {"b": torch.zeros(3)}}) == ["model"]


def table(keys, logits):
    return pa.table({"key": keys, "logit": pa.array(logits, pa.float32())})


def test_logits_of_two_processes_are_compared_row_by_row():
    one = table(["a", "b", "c"], [1.0, 2.0, 3.0])
    assert trainings.compare_logits(one, table(["c", "a", "b"], [3.0, 1.0, 2.0])).passed
    assert not trainings.compare_logits(one, table(["c", "a", "b"], [3.0, 1.0, 2.01])).passed
    assert not trainings.compare_logits(one, table(["a", "b"], [1.0, 2.0])).passed
    padded = trainings.compare_logits(one, table(["a", "b", "c", "a"], [1.0, 2.0, 3.0, 1.0]))
    assert not padded.passed
    assert "lost or repeated" in padded.detail


@pytest.mark.slow
def test_two_processes_score_as_one_does(run_evidence, config):
    run_evidence.run_checks = True
    found = trainings.check_ddp_eval(run_evidence, config)
    assert found.passed, found.detail
    assert found.measured["rows"] == [120, 120]


def test_a_part_of_a_dataset_keeps_pixels_and_columns(evidence_of, tmp_path):
    from lensprep.dataset import Dataset

    evidence = evidence_of(pixels={})
    part = Dataset.open(trainings.write_part(evidence.dataset, tmp_path / "part", 41, 0))
    assert part.split("train").classes == {"0": 20, "1": 21}
    whole = evidence.dataset.read_sidecar("train", ["key"])["key"].to_pylist()
    keys = part.read_sidecar("train", ["key"])["key"].to_pylist()
    rows = [whole.index(key) for key in keys]
    expected = evidence.dataset.read_pixels("train", rows)
    assert np.array_equal(part.read_pixels("train", np.arange(41)), expected)
    assert set(SPLITS[:2]) == set(part.manifest.splits)
