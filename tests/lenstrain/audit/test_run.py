"""Checks of the run: provenance, the ledger of test, other seeds."""

import json
import shutil
from dataclasses import replace

import pytest

from lenstrain.audit import run
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.audit.finding import NotRunError
from lenstrain.config import Config, EvalConfig
from lenstrain.evaluation.scores import read_scores
from lenstrain.scoring.infer import infer
from lenstrain.scoring.ledger import LEDGER, openings, read_ledger, record_opening
from tests.lenstrain.audit.conftest import good_logits, make_dataset, make_table, write_scores

EVALUATION = {
    "provenance": {"calibrate_on": "val.parquet", "scores_sha256": None},
    "completeness_thresholds": [{"name": "FPR 0.01", "threshold": 1.0}],
    "tpr_at_fpr": {"0.001": {"low": 0.2, "high": 0.8}},
}


def table_of(tmp_path, split, seed=0, **metadata):
    table = make_table(split, 120, seed)
    path = tmp_path / f"{split}-{seed}.parquet"
    return read_scores(write_scores(path, table, good_logits(table), split=split, **metadata))


@pytest.fixture
def complete(run_evidence, tmp_path):
    run_evidence.checkpoint = run_evidence.checkpoint | {"git_commit": "0" * 40}
    run_evidence.scores = table_of(tmp_path, "test")
    run_evidence.calibration = table_of(tmp_path, "val")
    told = EVALUATION["provenance"] | {"scores_sha256": run_evidence.scores.sha256}
    run_evidence.evaluation = EVALUATION | {"provenance": told}
    return run_evidence


def test_a_complete_run_passes(complete, config):
    found = run.check_provenance(complete, config)
    assert found.passed, found.detail
    assert found.measured["dataset_id"] == complete.dataset.dataset_id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rng": None}, "lacks rng"),
        ({"git_commit": "0" * 40 + "+"}, "changed after its commit"),
        ({"dataset_id": "f" * 64}, "another dataset"),
        ({"config": {}}, "seed is not recorded"),
        ({"git_commit": None, "versions": {"torch": "2"}}, "either commit nor version"),
    ],
)
def test_an_incomplete_checkpoint_fails(complete, config, changes, said):
    complete.checkpoint = complete.checkpoint | changes
    found = run.check_provenance(complete, config)
    assert not found.passed
    assert said in found.detail


def test_a_threshold_chosen_on_its_own_scores_fails(complete, config):
    told = complete.evaluation["provenance"] | {"calibrate_on": None}
    complete.evaluation = EVALUATION | {"provenance": told}
    found = run.check_provenance(complete, config)
    assert not found.passed
    assert "--calibrate-on" in found.detail


@pytest.mark.parametrize(
    ("split", "said"),
    [("train", "the finder was trained on"), ("test", "120 stamps are in the judged scores too")],
)
def test_a_threshold_from_a_split_that_is_not_independent_fails(complete, config, tmp_path, split,
                                                               said):  # fmt: skip
    complete.calibration = table_of(tmp_path, split)
    found = run.check_provenance(complete, config)
    assert not found.passed
    assert said in found.detail


def test_without_its_table_the_reports_word_on_the_split_counts(complete, config, tmp_path):
    del complete.calibration
    told = complete.evaluation["provenance"] | {"calibrate_on_sha256": "0" * 64}
    complete.evaluation = EVALUATION | {"provenance": told}
    assert "--calibration-scores" in run.check_provenance(complete, config).detail
    complete.evaluation["calibration_split"] = {"reasons": ["its rows were trained on"]}
    assert "trained on" in run.check_provenance(complete, config).detail
    complete.evaluation["calibration_split"] = {"reasons": []}
    assert run.check_provenance(complete, config).passed
    # But a table that was named is judged, not skipped.
    other = table_of(tmp_path, "train").path
    complete.supplied = replace(complete.supplied, calibration_scores=other)
    found = run.check_provenance(complete, config)
    assert not found.passed
    assert "train-0.parquet is not the table that the evaluation calibrated on" in found.detail


def test_an_evaluation_of_other_scores_fails(complete, config, tmp_path):
    complete.scores = table_of(tmp_path, "test", 1)
    found = run.check_provenance(complete, config)
    assert not found.passed
    assert "other scores" in found.detail


def test_a_configuration_unlike_the_checkpoints_is_named(complete, config):
    mine = complete.config
    complete.config = replace(mine, optim=replace(mine.optim, lr=0.5),
                              data=replace(mine.data, memory_budget_gb=1.0))  # fmt: skip
    found = run.check_provenance(complete, config)
    assert not found.passed
    assert "optim.lr is 0.5, was 0.002" in found.detail
    assert "memory_budget_gb" not in found.detail  # how it was read is not what was trained


def test_a_key_that_came_later_has_its_default(complete, config):
    older = complete.checkpoint["config"]
    optim = {name: value for name, value in older["optim"].items() if name != "ema_decay"}
    complete.checkpoint = complete.checkpoint | {"config": older | {"optim": optim}}
    assert run.check_provenance(complete, config).passed


def test_without_an_evaluation_provenance_is_incomplete(run_evidence, config):
    found = run.check_provenance(run_evidence, config)
    assert not found.passed
    assert "no evaluation" in found.detail


def test_test_is_opened_once(tmp_path, config):
    evidence = Evidence(tmp_path, make_dataset(tmp_path / "ds"))
    evidence.config = Config()
    with pytest.raises(NotRunError, match="names no scoring"):
        run.check_test_once(evidence, config)
    facts = {"checkpoint_sha256": "a", "step": 1, "epoch": 1, "split": "test", "tta": False,
             "dataset_id": evidence.dataset.dataset_id, "members": ["a", "b"]}  # fmt: skip
    record_opening(tmp_path, facts)
    record_opening(tmp_path, facts | {"members": ["b", "a"]})  # the mean is the same
    record_opening(tmp_path, facts | {"dataset_id": "real lenses"})
    assert run.check_test_once(evidence, config).passed
    record_opening(tmp_path, facts | {"members": ["a"]})
    found = run.check_test_once(evidence, config)
    assert not found.passed
    assert found.measured == {"openings": 3, "different": 2}


def test_a_line_of_an_older_version_is_of_its_checkpoint_alone(tmp_path):
    line = {"checkpoint_sha256": "a", "step": 1, "epoch": 1, "split": "test", "tta": False,
            "dataset_id": "d", "opened": "2025-01-01"}  # fmt: skip
    (tmp_path / LEDGER).write_text(json.dumps(line) + "\n")
    record_opening(tmp_path, line | {"members": ["a"]})
    record_opening(tmp_path, line | {"members": ["a"], "tta": True})
    assert len(openings(read_ledger(tmp_path), "d")) == 2


def test_a_run_steered_by_test_fails(tmp_path, evidence_of, config):
    evidence = evidence_of()
    evidence.config = Config(eval=EvalConfig(split="test"))
    assert not run.check_test_once(evidence, config).passed


@pytest.fixture
def own_run(finished, tmp_path):
    """A run whose ledger the test may write, and the dataset."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(finished[0] / "checkpoints" / "best.pt", tmp_path / "run" / "checkpoints")
    return tmp_path / "run", finished[1]


def test_test_is_opened_when_asked_for_and_each_way_counts_once(own_run, tmp_path, caplog):
    folder, dataset = own_run

    def score(**options):
        caplog.clear()
        with caplog.at_level("INFO", "lenstrain.ledger"):
            found = infer(folder / "checkpoints" / "best.pt", dataset, device="cpu",
                          out=tmp_path / "s.parquet", **options)  # fmt: skip
        return found, caplog.text

    found, said = score()
    assert (found["split"], found["test_openings"], said) == ("val", [], "")
    assert read_ledger(folder) is None
    found, said = score(split="test")
    (line,) = read_ledger(folder)
    told = read_scores(tmp_path / "s.parquet").metadata
    assert line["checkpoint_sha256"] == told["checkpoint_sha256"]
    assert "for the first time" in said
    known = {"ledger": str(folder / LEDGER), "repeated": False, "fault": None}
    assert found["test_openings"] == [known | {"before": 0}]
    found, said = score(split="test", batch_size=64)
    assert "again, with the same weights and options" in said
    assert found["test_openings"] == [known | {"before": 0, "repeated": True}]
    found, said = score(split="test", tta=True)
    assert "opened with other weights or options" in said
    assert found["test_openings"] == [known | {"before": 1}]
    assert len(read_ledger(folder)) == 3
    assert len(openings(read_ledger(folder), found["dataset_id"])) == 2


def test_a_ledger_that_cannot_be_written_is_said(own_run, tmp_path, caplog):
    folder, dataset = own_run
    (folder / LEDGER).symlink_to(tmp_path / "no such folder" / LEDGER)  # root may write anywhere
    checkpoint, out = folder / "checkpoints" / "best.pt", tmp_path / "s.parquet"
    found = infer(checkpoint, dataset, split="test", out=out, device="cpu")
    (opened,) = found["test_openings"]
    assert "cannot be written: No such file or directory" in opened["fault"]
    assert "This opening of the test split is in no ledger" in caplog.text
    assert out.exists()


def test_a_loose_checkpoint_has_no_ledger_and_that_is_said(own_run, tmp_path, caplog):
    folder, dataset = own_run
    loose = shutil.copy(folder / "checkpoints" / "best.pt", tmp_path / "best.pt")
    found = infer(loose, dataset, split="test", out=tmp_path / "s.parquet", device="cpu")
    assert found["test_openings"][0]["ledger"] is None
    assert "is not in a run folder" in caplog.text
    assert list(tmp_path.rglob(LEDGER)) == []


def seeds(tmp_path, strengths, names="abc"):
    """Evidence with one table for each strength of signal."""
    table = make_table("test", 600)
    paths = [
        write_scores(tmp_path / f"{i}.parquet", table, good_logits(table, i, strength),
                     checkpoint_sha256=name)
        for i, (strength, name) in enumerate(zip(strengths, names, strict=True))
    ]  # fmt: skip
    evidence = Evidence(tmp_path, None, Supplied(seed_scores=tuple(paths[1:])))
    evidence.scores, evidence.evaluation = read_scores(paths[0]), EVALUATION
    return evidence


def test_seeds_that_agree_pass(tmp_path, config):
    found = run.check_seeds(seeds(tmp_path, (3.0, 3.0, 3.0)), config)
    assert found.passed, found
    assert found.measured["checkpoints"] == 3


def test_seeds_that_differ_fail(tmp_path, config):
    found = run.check_seeds(seeds(tmp_path, (8.0, 3.0, 0.5)), config)
    assert not found.passed
    assert found.measured["half_range"] > 0.3


def test_the_same_checkpoint_thrice_is_no_three_seeds(tmp_path, config):
    found = run.check_seeds(seeds(tmp_path, (3.0, 3.0, 3.0), "aab"), config)
    assert not found.passed
    assert "Only 2 different" in found.detail


def test_one_seed_is_not_run(tmp_path, config):
    evidence = seeds(tmp_path, (3.0,), "a")
    with pytest.raises(NotRunError, match="--seed-scores"):
        run.check_seeds(evidence, config)
