"""What a person sees of a training: rate, data wait, time left, and a line for each epoch."""

import pytest

from lenstrain.cli import progress
from lenstrain.cli.progress import TrainProgress
from lenstrain.evaluation.metrics import steering
from lenstrain.training.run import Event

RECORD = {"samples_per_s": 1234.4, "data_wait_share": 0.015, "loss": 0.4321}
EPOCH = dict.fromkeys(steering(counterfactuals=False), 0.25) | {
    "train_loss": 0.5, "auroc": 0.91234, "nll": 0.4, "epochs_without_gain": 0
}  # fmt: skip


def event(stage="train", epoch=1, step=1, record=None):
    return Event(
        stage=stage, epoch=epoch, epochs=2, step=step, steps=10, stamps=8, record=record or {}
    )


@pytest.fixture
def at_once(monkeypatch):
    """Lines without a terminal come with every step."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_line_tells_rate_data_wait_loss_and_time_left(capsys):
    with TrainProgress() as show:
        show(event(step=1))
        show(event(step=5, record=RECORD))
        show(event(step=6))
    lines = capsys.readouterr().err.splitlines()
    for line, share in zip(lines, ("25%", "30%"), strict=True):
        assert line.startswith(f"epoch 1/2, whole run: {share}, about ")
        assert " s left, 1,234 stamps/s, waiting for data 1.5%, loss 0.4321" in line


@pytest.mark.usefixtures("at_once")
def test_the_time_left_of_a_resumed_run_is_that_of_the_steps_since(capsys, monkeypatch):
    now = iter([0.0, 10.0, 10.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    show = TrainProgress()
    show(event(epoch=2, step=5))  # 15 of 20 steps, and the start belongs to none of them
    show(event(epoch=2, step=6))
    assert capsys.readouterr().err.splitlines() == ["epoch 2/2, whole run: 80%, about 40 s left"]


def test_an_epoch_is_one_line(capsys):
    with TrainProgress() as show:
        show(event("validate", step=3))
        show(event("epoch", step=10, record=EPOCH))
        show(event("epoch", epoch=2, step=10, record={**EPOCH, "epochs_without_gain": 3}))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "epoch 1/2  train loss 0.5000  auroc 0.9123  nll 0.4000  tpr_at_fpr 0.2500"
    assert second.endswith("no gain for 3")


def test_what_counterfactuals_measure_is_on_the_line_of_an_epoch(capsys):
    record = {**EPOCH, "pair_auroc": 0.75, "counterfactual_pass": 0.125}
    with TrainProgress() as show:
        show(event("epoch", step=10, record=record))
    line = capsys.readouterr().err
    assert line.endswith("tpr_at_fpr 0.2500  pair_auroc 0.7500  counterfactual_pass 0.1250\n")
