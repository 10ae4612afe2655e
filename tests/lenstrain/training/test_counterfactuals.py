"""Training with counterfactuals, and a validation in which they have metrics of their own."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from lensprep.dataset import Dataset
from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.dataset.sidecar import is_counterfactual
from lensprep.errors import ConfigError
from lenstrain.evaluation.metrics import METRICS
from lenstrain.evaluation.pairs import find_pairs
from lenstrain.training import pictures
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.counterfactuals import Counterfactuals, read_counterfactuals
from lenstrain.training.distributed import Context
from lenstrain.training.run import build_run, check_input
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import train, validate
from lenstrain.training.validate import validation_metrics
from tests.boards import Board
from tests.familydatasets import family_dataset, family_table
from tests.lenstrain.training.test_train import stop_at

CPU = Context(device=torch.device("cpu"))
OWN = ("pair_auroc", "counterfactual_pass")


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """90 ordinary rows and 10 families to train on, 40 and 8 to validate on."""
    folder = tmp_path_factory.mktemp("families")
    return str(family_dataset(folder, {"train": 90, "val": 40}, {"train": 10, "val": 8}))


def lines(run, kind="epoch"):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


def measured(logits, table, fpr=0.1):
    made = Counterfactuals(is_counterfactual(table), find_pairs(table))
    return validation_metrics(np.float32(logits), table["label"].to_numpy(), fpr, made)


def test_what_sees_light_alone_wins_half_of_its_pairs_and_lets_all_light_pass():
    table = family_table(40, 8)
    light = np.r_[np.arange(40) % 2, np.ones(24)]  # a lens, and whatever has a lens's light
    found = measured(light, table)
    assert [found[name] for name in ("auroc", *OWN)] == [1.0, 0.5, 1.0]


def test_what_sees_lensing_wins_every_pair_and_lets_no_light_pass():
    table = family_table(40, 8)
    found = measured(table["label"].to_numpy(), table)
    assert [found[name] for name in ("auroc", *OWN)] == [1.0, 1.0, 0.0]


def test_a_share_that_passes_is_counted_above_the_threshold_of_ordinary_rows():
    table = family_table(40, 8)
    logits = np.r_[np.arange(40.0), np.full(24, -50.0)]
    made = np.flatnonzero(table["label"].to_numpy()[40:] == 0)
    logits[40 + made[:6]] = 37.5  # ordinary non-lenses are 0, 2, ... 38: at 0.1 the cut is at 34
    found = measured(logits, table)
    assert found["counterfactual_pass"] == 6 / 16
    logits[40 + made[:6]] = 34.0  # a row is flagged strictly above
    assert measured(logits, table)["counterfactual_pass"] == 0.0


def test_every_other_metric_is_as_without_them():
    table = family_table(60, 12)
    rng = np.random.default_rng(1)
    logits = np.float32(rng.normal(size=table.num_rows) + table["label"].to_numpy())
    order = rng.permutation(table.num_rows)
    mixed = table.take(pa.array(order))
    alone = validation_metrics(logits[:60], table["label"].to_numpy()[:60], 0.1)
    found = measured(logits[order], mixed)
    assert set(found) - set(alone) == set(OWN)
    assert {name: found[name] for name in alone} == pytest.approx(alone, rel=1e-12)


def test_without_a_lens_among_them_there_are_no_pairs():
    table = family_table(40, 8, kinds=("unlensed",))
    found = measured(np.arange(48.0), table)
    assert np.isnan(found["pair_auroc"])
    assert found["counterfactual_pass"] == 1.0
    found = measured(np.arange(48.0), family_table(40, 8, kinds=("lensed",)))
    assert np.isnan([found[name] for name in OWN]).all()


def test_a_logit_that_is_not_finite_leaves_no_metric():
    table = family_table(40, 8)
    logits = np.arange(table.num_rows, dtype=float)
    logits[-1] = np.nan
    assert np.isnan([*measured(logits, table).values()]).all()


def test_a_run_records_them_and_steers_by_pairs(families, make_config, tmp_path, caplog):
    caplog.set_level("INFO")
    config = make_config("train.monitor=pair_auroc", "data.counterfactual_share=0.25")
    out = tmp_path / "run"
    result = train(families, config, out)
    assert "an epoch has 120 rows, 30 of them counterfactuals" in caplog.text
    assert result["step"] == 2 * 10
    run, epochs = build_run(Dataset.open(families), config, tmp_path, CPU, None), lines(out)
    made = run.counterfactuals
    assert int(made.mask.sum()) == 24
    assert len(made.pairs.lens) == 16
    run.learner.load_state_dict(load_checkpoint(out / "checkpoints" / "last.pt"))
    logits, labels = validate(run, StopSignals())
    run.close()
    assert len(logits) == 64  # every row is scored
    expected = validation_metrics(logits, labels, config.eval.fpr, made)
    assert {name: epochs[-1][name] for name in expected} == expected
    best = max(record["pair_auroc"] for record in epochs)
    assert result["best_value"] == epochs[-1]["best_pair_auroc"] == best
    assert result["monitor"] == "pair_auroc"
    assert (out / "checkpoints" / "best-pair_auroc.pt").exists()
    board = Board(out / "tensorboard")
    assert {f"epoch/{name}" for name in OWN} <= set(board.tags("scalars"))


def test_a_share_of_0_trains_as_on_the_ordinary_rows_alone(
    dataset, families, make_config, tmp_path, caplog
):
    caplog.set_level("INFO")
    train(families, make_config("train.epochs=1"), tmp_path / "with")
    assert "the 30 counterfactuals of the training split are left out" in caplog.text
    assert "data.where='label == 0 or theta_e_arcsec >= 0.5 * psfsize_r'" in caplog.text
    caplog.clear()
    train(dataset, make_config("train.epochs=1"), tmp_path / "without")
    assert "counterfactual" not in caplog.text
    (with_some,), (without,) = lines(tmp_path / "with"), lines(tmp_path / "without")
    assert with_some["step"] == without["step"] == 8
    assert set(with_some) - set(without) == set(OWN)
    assert not (tmp_path / "without" / "checkpoints" / "best-pair_auroc.pt").exists()


def test_metrics_of_a_dataset_without_them_keep_their_keys(dataset, make_config, tmp_path):
    train(dataset, make_config("train.epochs=1"), tmp_path / "run")
    (record,) = lines(tmp_path / "run")
    recorded = [metric.name for metric in METRICS if metric.training != "none"]
    assert set(record) == {
        "kind", "step", "epoch", "train_loss", *recorded, "best_auroc", "epochs_without_gain",
        "validation_seconds",
    }  # fmt: skip
    board = Board(tmp_path / "run" / "tensorboard")
    assert "epoch/pair_auroc" not in board.tags("scalars")


def test_an_interrupted_run_with_them_ends_with_the_same_bits(families, make_config, tmp_path):
    config = make_config("data.counterfactual_share=0.25", "train.checkpoint_minutes=0")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(families, config, whole)
    assert train(families, config, parts, progress=stop_at(7))["status"] == "interrupted"
    train(families, config, parts, resume=True)
    first, second = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, parts))
    assert first["loader"] == second["loader"]
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name


def test_the_pictures_of_a_validation_are_of_ordinary_rows(families, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(pictures, "stamp_pictures",
                        lambda dataset, split, rows: seen.append(rows) or
                        np.zeros((len(rows), 64, 64, 3), np.uint8))  # fmt: skip
    dataset = Dataset.open(families)
    table = dataset.read_sidecar("val", ["label", COUNTERFACTUAL])
    labels, made = table["label"].to_numpy(), is_counterfactual(table)
    logits = np.where(made, 9.0, 0.0).astype(np.float32)  # as wrong as can be, for most of them

    with SummaryWriter(str(tmp_path)) as board:
        ordinary = np.flatnonzero(~made)
        pictures.show_validation(board, 1, 1, dataset, "val", logits, labels, ordinary)
    ((_, curve),) = Board(tmp_path).tensors("validation/pr")
    counts = curve[:4].sum(axis=0)  # all four of the confusion matrix
    assert (counts == 40).all()
    lenses, others = seen
    assert labels[lenses].all()
    assert not labels[others].any()
    assert not made[np.concatenate(seen)].any()
    assert len(lenses) == len(others) == 20


def test_classes_are_those_of_ordinary_rows(families, dataset, tmp_path, make_config):
    for root in (families, dataset):
        assert Dataset.open(root).split("val").ordinary_classes == {"0": 20, "1": 20}
    assert read_counterfactuals(Dataset.open(dataset), "val") is None


def test_pairs_are_needed_to_steer_by_them(dataset, families, make_config, tmp_path):
    config = make_config("train.monitor=pair_auroc")
    check_input(Dataset.open(families), config, CPU)
    message = (
        "train.monitor is 'pair_auroc', but split 'val' of .* has no pairs .*`lensprep counterfact"
    )
    with pytest.raises(ConfigError, match=message):
        check_input(Dataset.open(dataset), config, CPU)
    alone = family_dataset(tmp_path, {"train": 30, "val": 30}, 4, kinds=("unlensed",))
    with pytest.raises(ConfigError, match=message):
        check_input(Dataset.open(alone), config, CPU)
    with pytest.raises(ConfigError, match=r"has no counterfactuals\. Make them with"):
        train(dataset, make_config("data.counterfactual_share=0.3"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
