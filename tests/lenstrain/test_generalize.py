"""Leaving one kind of lens out: what is like the others is found, what is not is missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lensprep.dataset.where import compile_where
from lensprep.dataset.writer import write_dataset
from lensprep.errors import ConfigError
from lenstrain.cli import main
from lenstrain.config import Config
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from lenstrain.generalize import (
    Case,
    _compare,
    _elsewhere,
    _headline,
    _lenses,
    _result,
    as_markdown,
    check_factors,
    generalize,
    judge,
    plan_cases,
)
from tests.datasets import SPEC, tiny_table
from tests.families import BY_FLUX, add_families
from tests.familydatasets import family_dataset
from tests.scoretables import make_mixed, make_table

SETTINGS = (
    "model.arch=resnet_small",
    "model.width=8",
    "model.blocks=[1,1]",
    "model.crop=20",
    "data.batch_size=32",
    "optim.lr=6e-3",
    "optim.warmup_epochs=0.2",
    "train.epochs=4",
    "train.device=cpu",
    "train.pictures=false",
)
QUICK = EvaluationOptions(resamples=200)
REPOSITORY = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


def stamps(table, seed):
    """Noise; a lens of 0.6 or 1.0 arcsec has a bright ring, one of 1.5 a dark one."""
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((table.num_rows, 3, 64, 64), np.float32)
    y, x = np.mgrid[:64, :64] - 31.5
    ring = (np.abs(np.hypot(y, x) - 6) < 1.5).astype(np.float32) * 2
    theta = table["theta_e_arcsec"].to_numpy()
    sign = np.select([theta == 0, theta == 1.5], [0.0, -1.0], 1.0)
    return (pixels + sign[:, None, None, None] * ring).astype("<f2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    splits = {}
    for number, (split, rows) in enumerate({"train": 384, "val": 20, "test": 300}.items()):
        table = tiny_table(rows, split, number)
        splits[split] = (stamps(table, number), table)
    root = tmp_path_factory.mktemp("generalize") / "dataset"
    write_dataset(root, splits, SPEC, shard_rows=200)
    return str(root)


@pytest.fixture(scope="module")
def result(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    config = load_config(Config, None, SETTINGS)
    stages = []
    found = generalize(
        dataset, config, out, fpr=0.05, options=QUICK,
        progress=lambda name, share: stages.append((name, share)),
    )  # fmt: skip
    return out, config, found, stages


@pytest.mark.slow
def test_lenses_like_the_others_hold_and_strangers_fall(result):
    _, _, found, _ = result
    entry = found["factors"]["theta_e_arcsec"]
    assert entry["testable"]
    cases = {case["value"]: case for case in entry["cases"]}
    assert list(cases) == ["0.6", "1.0", "1.5"]
    for alike in ("0.6", "1.0"):
        assert cases[alike]["passed"] is True
        assert cases[alike]["tpr"]["this"] > 0.8
    strange = cases["1.5"]
    assert strange["passed"] is False
    assert strange["tpr"]["other"] > 0.8 > 0.4 > strange["tpr"]["this"]
    assert strange["tpr"]["high"] < -0.05
    assert strange["others"]["tpr"]["value"] > -0.05  # what it was trained on it still finds
    tpr = strange["tpr"]
    assert tpr["value"] == pytest.approx(tpr["this"] - tpr["other"])
    assert found["passed"] is False
    assert sum(case["n"] for case in cases.values()) == 150


@pytest.mark.slow
def test_what_has_one_value_is_said_to_be_not_testable(result):
    _, _, found, _ = result
    model, magnitude = found["factors"]["lens_model"], found["factors"]["src_dmag"]
    assert not model["testable"]
    assert model["reason"].startswith("not testable: all training lenses have lens_model SIE")
    assert magnitude["reason"] == "not testable: the dataset has no column src_dmag"
    assert model["cases"] == magnitude["cases"] == []


@pytest.mark.slow
def test_no_run_saw_the_lenses_that_it_was_to_do_without(result):
    out, _, _, _ = result
    text = (out / "without-theta_e_arcsec-1.5" / "run" / "config.toml").read_text()
    assert "label == 0 or theta_e_arcsec < 1.25" in text
    assert "where" not in (out / "all" / "run" / "config.toml").read_text()
    # 192 lenses, about 64 of each kind; all 192 non-lenses stay.
    steps = {}
    for name in ("all", "without-theta_e_arcsec-1.5"):
        lines = (out / name / "run" / "metrics.jsonl").read_text().splitlines()
        steps[name] = max(json.loads(line)["step"] for line in lines)
    assert steps["all"] == 4 * 12
    assert steps["without-theta_e_arcsec-1.5"] in range(4 * 9, 4 * 12)


@pytest.mark.slow
def test_the_result_is_written_for_programs_and_for_people(result):
    out, _, found, stages = result
    assert json.loads((out / "generalize.json").read_text()) == found
    text = (out / "generalize.md").read_text()
    assert "| theta_e_arcsec 1.5 |" in text
    assert "falls |" in text
    assert "not testable" in text
    shares = [share for _, share in stages]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.slow
def test_finished_runs_are_not_made_again(result, dataset, monkeypatch):
    out, config, found, _ = result
    monkeypatch.setattr("lenstrain.training.train.train", lambda *_, **__: pytest.fail("trained"))
    assert generalize(dataset, config, out, fpr=0.05, options=QUICK) == found


@pytest.mark.slow
def test_two_processes_train_score_and_write_together(dataset, tmp_path):
    """They join one group after the other: six, for three runs and their scores."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "lenstrain", "generalize", dataset, "--out", str(tmp_path / "out")]
    command += ["--hold-out", "theta_e_arcsec", "--fpr", "0.05", "--json"]
    for setting in (*SETTINGS, "train.epochs=1"):
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # of one process alone
    assert [case["n"] > 0 for case in found["factors"]["theta_e_arcsec"]["cases"]] == [True] * 3
    assert json.loads((tmp_path / "out" / "generalize.json").read_text()) == found
    assert done.stderr.count("with all lenses") <= 1
    environment = json.loads((tmp_path / "out" / "all" / "run" / "environment.json").read_text())
    assert environment["processes"] == 2


def test_continuous_factors_are_left_out_in_quantile_bins():
    lenses = pa.table({"arc_snr": np.linspace(1, 100, 400)})
    cases = plan_cases(lenses, "arc_snr")
    assert [case.train_lenses for case in cases] == [100] * 4
    assert cases[0].others.startswith("label == 0 or arc_snr >= 25.")
    assert " or arc_snr < " in cases[1].others
    assert ">=" not in cases[3].others


def test_a_factor_without_values_is_not_testable():
    empty = pa.table({"src_dmag": pa.nulls(3, pa.float64())})
    assert plan_cases(empty, "src_dmag") == "no training lens has a src_dmag"
    same = pa.table({"src_dmag": [1.0, 1.0]})
    assert plan_cases(same, "src_dmag").startswith("all training lenses have src_dmag 1.0")


def test_the_command_says_not_testable_without_training(dataset, tmp_path):
    arguments = ["generalize", dataset, "--out", str(tmp_path / "o"), "--hold-out", "lens_model"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "not testable: all training lenses have lens_model SIE" in " ".join(done.stdout.split())
    assert [path.name for path in (tmp_path / "o").iterdir()] != []
    assert not (tmp_path / "o" / "all").exists()
    assert json.loads((tmp_path / "o" / "generalize.json").read_text())["passed"] is None


def test_names_that_are_no_columns_are_refused():
    for wrong in ("theta e", "label", "1 or 1"):
        with pytest.raises(ConfigError, match="is not a column that can be used"):
            check_factors([wrong])


def test_a_mistyped_column_and_a_folder_of_other_things_are_errors(dataset, tmp_path):
    def said(*arguments):
        done = CliRunner().invoke(main, ["generalize", dataset, *map(str, arguments)])
        assert done.exit_code == 1
        return done.stderr

    typo = said("--out", tmp_path / "o", "--hold-out", "lens_modle")
    assert "no column 'lens_modle' for --hold-out; it has: lens_model, " in typo
    (tmp_path / "thesis.tex").touch()
    assert "is not empty" in said("--out", tmp_path, "--hold-out", "lens_model")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_of_one_run_is_refused_for_many(dataset, tmp_path):
    config = load_config(Config, None, [*SETTINGS, f"train.checkpoint_copy={tmp_path / 'copy'}"])
    with pytest.raises(ConfigError, match="is for one run"):
        generalize(dataset, config, tmp_path / "o", factors=["lens_model"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [
        (-0.05, 0.02, True),  # a loss of 5 points is tolerated, a larger one excluded
        (-0.04, -0.02, True),  # a loss for certain, but a small one
        (0.01, 0.05, True),
        (-0.0501, 0.02, None),
        (-0.116, 0.006, None),  # -1.4 points of 11.6 lost or 0.6 gained: nothing is shown
        (-0.30, 0.30, None),
        (-0.12, -0.05, None),
        (-0.12, -0.0501, False),
        (-0.90, -0.60, False),
    ],
)
def test_the_interval_decides_and_may_leave_it_open(low, high, passed):
    found, reason = judge({"value": (low + high) / 2, "low": low, "high": high}, 30)
    assert found is passed
    assert (reason is None) == (passed is not None)
    assert judge({"low": low, "high": high}, 29) == (None, "29 lenses are too few to say")


def test_without_an_interval_nothing_is_decided():
    passed, reason = judge({"value": 0.0, "low": None, "high": None}, 500)
    assert passed is None
    assert "one has no interval" in reason


@pytest.mark.parametrize(
    ("cases", "passed"),
    [
        ([True, True], True),
        ([True, None], None),
        ([True, None, False], False),
        ([None], None),
        ([], None),
    ],
)
def test_all_must_hold_and_one_that_falls_is_enough(cases, passed):
    kinds = [Case("a", str(i), "label == 0", 40) for i in range(len(cases))]
    found = {case.name: {"passed": verdict} for case, verdict in zip(kinds, cases, strict=True)}
    plans = {"a": kinds or "the dataset has no column a", "b": "the dataset has no column b"}
    assert _result(plans, found)["passed"] is passed


def test_a_rate_without_support_is_no_verdict():
    case = {
        "value": "0.6", "n": 40, "supported": False, "passed": None, "others": None,
        "tpr": {"value": None, "low": None, "high": None, "this": None, "other": None},
        "reason": "needs 2,995 independent non-lenses, there are 900 distinct",
    }  # fmt: skip
    factors = {"theta_e_arcsec": {"testable": True, "reason": None, "cases": [case]}}
    text = as_markdown({"fpr": 0.001, "split": "test", "factors": factors})
    assert "| theta_e_arcsec 0.6 | 40 | | | | | needs 2,995 independent" in text
    assert "too few to support FPR 0.1%" in text


def test_counterfactuals_are_neither_left_out_nor_compared_on(tmp_path):
    data = Dataset.open(family_dataset(tmp_path, 60, 10))
    assert _lenses(data, "theta_e_arcsec").num_rows == 30
    (case, *_) = plan_cases(_lenses(data, "theta_e_arcsec"), "theta_e_arcsec")
    found = []
    for name, change in (("alone", lambda table: table),
                         ("both", lambda table: add_families(table, BY_FLUX))):  # fmt: skip
        paths = [tmp_path / f"{name}-{number}.parquet" for number in (1, 2)]
        for path, logit in zip(paths, (None, np.arange(1200.0)), strict=True):
            table = make_table() if logit is None else make_table(logit=logit)
            pq.write_table(change(table), path)
        found.append(_compare(case, *map(read_scores, paths), QUICK, 0.05))
    assert found[0]["n"] > 30
    assert found[1] == found[0]


def mixed_dataset(tmp_path, origin_of):
    splits = {}
    for split in ("train", "test"):
        table = tiny_table(60, split)
        origin = origin_of(np.arange(60), table["label"].to_numpy())
        table = table.append_column("origin", pa.array(origin.tolist(), pa.string()))
        theta = table["theta_e_arcsec"].to_numpy().copy()
        theta[origin == "real"] = np.nan
        place = table.column_names.index("theta_e_arcsec")
        table = table.set_column(place, "theta_e_arcsec", pa.array(theta, from_pandas=True))
        splits[split] = (np.zeros((60, 3, 64, 64), "<f2"), table)
    write_dataset(tmp_path / "mixed", splits, SPEC, shard_rows=50)
    return Dataset.open(tmp_path / "mixed")


def test_lenses_of_one_origin_are_left_out_and_those_of_others_stay(tmp_path):
    origins = np.array(["simulated", "", None], object)
    data = mixed_dataset(tmp_path, lambda i, label: np.where(i < 12, "real", origins[i % 3]))
    assert _headline(data, "test") == "simulated"
    lenses = _lenses(data, "theta_e_arcsec", "simulated")
    assert lenses.num_rows == 24
    kept = f"label == 0 or {_elsewhere('simulated')}"
    for case in plan_cases(lenses, "theta_e_arcsec", kept):
        mask = compile_where(case.others).mask(data.read_sidecar("train"))
        assert mask[:12].all()
        assert (~mask).sum() == case.train_lenses


def test_lenses_without_non_lenses_of_their_origin_are_refused_before_training(tmp_path):
    data = mixed_dataset(tmp_path, lambda i, label: np.where(label == 1, "real", "simulated"))
    config = load_config(Config, None, SETTINGS)
    with pytest.raises(ConfigError, match=r"no origin \(real, simulated\) with both classes"):
        generalize(str(data.uri), config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_are_compared_on_the_rows_of_the_headline(tmp_path):
    (case, *_) = plan_cases(make_table().filter(pc.field("label") == 1), "theta_e_arcsec",
                            f"label == 0 or {_elsewhere('simulated')}")  # fmt: skip
    found = []
    for name, make in (("alone", make_table), ("mixed", make_mixed)):
        paths = [tmp_path / f"{name}-{number}.parquet" for number in (1, 2)]
        for seed, path in enumerate(paths):
            table = make(1200, regions=30)
            if name == "alone":
                table = table.append_column("origin", pa.nulls(1200, pa.string()))
            rng = np.random.default_rng(seed)
            noise = rng.normal(size=1500)[: table.num_rows].astype(np.float32)
            logit = pa.array(table["logit"].to_numpy() + noise)
            pq.write_table(table.set_column(2, "logit", logit), path)
        found.append(_compare(case, *map(read_scores, paths), QUICK, 0.05))
    assert found[0]["n"] > 30
    assert found[0]["n"] == found[1]["n"]
    assert found[1]["auroc"]["this"] == found[0]["auroc"]["this"]
