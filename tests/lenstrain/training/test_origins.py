"""A validation of real and simulated rows: whose the metrics are, and each origin by itself."""

import json

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset.writer import write_dataset
from lenstrain.evaluation.metrics import auroc, roc_curve, tpr_at_fpr
from lenstrain.training.origins import Origins
from lenstrain.training.train import train
from lenstrain.training.validate import metrics_by_origin, validation_metrics
from tests.boards import Board
from tests.datasets import SPEC, tiny_pixels, tiny_table
from tests.familydatasets import family_table

ROWS = 60
OWN = {"n", "n_positive", "auroc", "average_precision", "nll", "tpr_at_fpr", "tpr", "fpr"}


def scored(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS, dtype=np.int8) % 2
    return np.float32(rng.normal(size=ROWS) + labels), labels


def parts(labels, real_lenses_only=False):
    real = np.arange(ROWS) < 20
    if real_lenses_only:
        real &= labels == 1
    return {"simulated": ~real, "real": real}


def test_metrics_are_of_the_headline_and_of_each_origin_by_itself():
    logits, labels = scored()
    logits[:20] -= 5  # ranked with the simulated rows, real lenses would lie below every non-lens
    origins = Origins(parts(labels), "simulated")
    found = validation_metrics(logits, labels, 0.1, None, origins)
    assert found == validation_metrics(logits[20:], labels[20:], 0.1)
    apart = metrics_by_origin(logits, labels, 0.1, None, origins)
    assert set(apart["real"]) == OWN
    assert (apart["real"]["n"], apart["real"]["n_positive"]) == (20, 10)
    assert apart["real"]["auroc"] == auroc(roc_curve(labels[:20], logits[:20]))
    assert {name: apart["simulated"][name] for name in found} == found
    assert apart["simulated"]["tpr"] == found["tpr_at_fpr"]
    cut = tpr_at_fpr(roc_curve(labels[20:], logits[20:]), 0.1).threshold
    assert apart["real"]["tpr"] == np.mean(logits[:20][labels[:20] == 1] > cut)


def test_an_origin_of_one_class_has_its_share_above_the_headlines_threshold():
    logits, labels = scored()
    origins = Origins(parts(labels, real_lenses_only=True), "simulated")
    logits[1:20:2] = 100
    real = metrics_by_origin(logits, labels, 0.1, None, origins)["real"]
    assert (real["n"], real["n_positive"], real["tpr"]) == (10, 10, 1.0)
    assert np.isnan([real[name] for name in ("auroc", "nll", "tpr_at_fpr", "fpr")]).all()


def test_without_an_origin_of_both_classes_the_metrics_are_of_all_rows():
    logits, labels = scored()
    origins = Origins({"simulated": labels == 0, "real": labels == 1}, None)
    found = validation_metrics(logits, labels, 0.1, None, origins)
    assert found == validation_metrics(logits, labels, 0.1)
    apart = metrics_by_origin(logits, labels, 0.1, None, origins)
    assert apart["real"]["tpr"] == found["tpr_at_fpr"]
    assert apart["simulated"]["fpr"] <= 0.1


def test_a_logit_that_is_not_finite_leaves_counts_alone():
    logits, labels = scored()
    logits[3] = np.nan
    apart = metrics_by_origin(logits, labels, 0.1, None, Origins(parts(labels), "simulated"))
    for entry in apart.values():
        assert entry["n"] > 0
        assert np.isnan([entry[name] for name in OWN - {"n", "n_positive"}]).all()


def write_mixed(root, origin_of, families=0):
    splits = {}
    for split in ("train", "val"):
        table = tiny_table(ROWS, split)
        if families:
            table = family_table(ROWS, families, split=split)
        origin = origin_of(table).tolist()
        table = table.append_column("origin", pa.array(origin, pa.string()))
        labels = table["label"].to_numpy()
        splits[split] = tiny_pixels(table.num_rows, labels=labels), table
    write_dataset(root, splits, SPEC, shard_rows=50)
    return str(root)


def epochs(run):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "epoch"]


def test_a_run_records_every_origin_and_says_which_steers(make_config, tmp_path, caplog):
    caplog.set_level("INFO")
    root = write_mixed(
        tmp_path / "data",
        lambda table: np.where(np.arange(table.num_rows) < 20, "real", "simulated"),
    )
    out = tmp_path / "run"
    result = train(root, make_config(), out)
    assert "validation has 20 real and 40 simulated rows" in caplog.text
    assert "choose the best epoch, are of the simulated ones" in caplog.text
    lines = epochs(out)
    for line in lines:
        assert set(line["origins"]["real"]) == OWN
        assert line["origins"]["real"]["n"] == 20
        assert line["auroc"] == line["origins"]["simulated"]["auroc"]
    assert result["best_value"] == max(line["auroc"] for line in lines)
    tags = Board(out / "tensorboard").tags("scalars")
    assert {"epoch/origins/real/auroc", "epoch/origins/simulated/tpr"} <= set(tags)


def test_real_lenses_alone_are_recall_and_null(make_config, tmp_path):
    root = write_mixed(
        tmp_path / "data",
        lambda table: np.where(
            (np.arange(table.num_rows) < 20) & (table["label"].to_numpy() == 1), "real", ""
        ),
    )
    train(root, make_config("train.epochs=1"), tmp_path / "run")
    (line,) = epochs(tmp_path / "run")
    real = line["origins"]["real"]
    assert real["auroc"] is None
    assert real["fpr"] is None
    assert 0 <= real["tpr"] <= 1
    assert line["auroc"] == line["origins"]["simulated"]["auroc"]


def test_lenses_of_one_origin_against_non_lenses_of_another_are_pooled(
    make_config, tmp_path, caplog
):
    caplog.set_level("INFO")
    root = write_mixed(
        tmp_path / "data",
        lambda table: np.where(table["label"].to_numpy() == 1, "real", "simulated"),
    )
    train(root, make_config("train.epochs=1"), tmp_path / "run")
    assert "of all together, as no origin has both classes" in caplog.text
    (line,) = epochs(tmp_path / "run")
    assert line["auroc"] is not None
    assert line["origins"]["real"]["tpr"] == pytest.approx(line["tpr_at_fpr"])


def test_counterfactuals_are_rows_of_no_origin(make_config, tmp_path):
    root = write_mixed(
        tmp_path / "data",
        lambda table: np.where(np.arange(table.num_rows) < 20, "real", "simulated"),
        families=8,
    )
    train(root, make_config("train.epochs=1"), tmp_path / "run")
    (line,) = epochs(tmp_path / "run")
    assert {name: of["n"] for name, of in line["origins"].items()} == {"simulated": 40, "real": 20}
    assert line["pair_auroc"] is not None
