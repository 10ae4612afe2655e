"""The sweep itself: real trials, real failures, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from click.testing import CliRunner
from optuna.trial import TrialState

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lensprep.errors import ConfigError, OutOfMemoryError, StorageError
from lensprep.store.interrupts import PREEMPTED
from lenstrain.cli import main
from lenstrain.config import Config
from lenstrain.sweep.config import load_plan
from lenstrain.sweep.importance import importance
from lenstrain.sweep.report import notes, recommend
from lenstrain.sweep.study import claim, make_study_files, open_study
from lenstrain.sweep.sweep import (
    MOST_DEATHS,
    WorkerError,
    _check_deaths,
    supervise,
    sweep,
    worker_environment,
)
from lenstrain.sweep.work import Worker, describe, work
from tests.familydatasets import family_dataset

TOO_WIDE = 1 << 20
"""Channels of a network whose weights take 40 TB."""
WIDTHS = f"[8, {TOO_WIDE}, {TOO_WIDE + 8}, {TOO_WIDE + 16}]"
"""The first trial is the base, whose 8 channels fit; most others cannot."""


pytestmark = pytest.mark.usefixtures("one_thread")


def open_again(files, plan, dataset):
    return open_study(files, plan, Dataset.open(dataset).dataset_id)


def start(arguments, **environment):
    command = [sys.executable, "-m", "lenstrain", "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_trial_out_of_memory_is_recorded_and_the_best_of_the_others_is_refitted(
    dataset, write_sweep, tmp_path
):
    """In one process; the test split's shards are gone, so nothing here can have opened them."""
    plan = load_plan(write_sweep(WIDTHS), ("refit.top=1",))
    files, lines = make_study_files(tmp_path / "s.db"), []
    assert work(dataset, plan, files, lines.append)
    study = open_again(files, plan, dataset)
    states = [trial.state for trial in study.trials]
    assert len(states) == 3
    assert TrialState.FAIL in states
    assert TrialState.COMPLETE in states
    result = recommend(study, dataset, plan, files)
    assert all("out of memory" in failure["reason"] for failure in result["failures"])
    assert result["trials"]["fail"] == states.count(TrialState.FAIL) == len(result["failures"])
    (refit,) = result["refits"]
    assert len(refit["values"]) == 3
    assert len(set(refit["values"])) == 3  # three seeds, three starts
    found = result["recommended"]
    assert found["mean"] == pytest.approx(sum(refit["values"]) / 3)
    config = load_config(Config, Path(found["config"]))
    assert config.model.width == 8
    assert config.eval.split == "val"
    assert found["command"] in (files.folder / "recommended.sh").read_text()
    assert Path(result["plots"][0]).stat().st_size > 5000
    assert not list(files.folder.glob("trials/*/checkpoints"))
    assert len(list(files.folder.glob("refits/*/checkpoints/best.pt"))) == 3
    # The same command again has nothing left to do.
    assert work(dataset, plan, files, lines.append)
    assert len(open_again(files, plan, dataset).trials) == 3


def test_pairs_are_needed_to_be_steered_by_them(dataset, write_sweep, tmp_path):
    plan = load_plan(write_sweep("[8]"), ("search.objective=pair_auroc",))
    assert plan.base.train.monitor == "pair_auroc"
    with pytest.raises(ConfigError, match=r"search\.objective is 'pair_auroc', but split 'val' of"):
        sweep(dataset, plan, make_study_files(tmp_path / "s.db"), ["sweep"], 1)


def test_a_sweep_is_steered_by_pairs_and_counts_ordinary_rows(write_sweep, tmp_path):
    root = family_dataset(tmp_path, {"train": 60, "val": 30}, 6)
    sets = ("search.objective=pair_auroc", "search.trials=1", "refit.top=1", "refit.seeds=[1]")
    plan, files = load_plan(write_sweep("[8]"), sets), make_study_files(tmp_path / "s.db")
    assert work(str(root), plan, files, lambda _: None)
    study = open_again(files, plan, str(root))
    assert study.trials[0].value == study.trials[0].user_attrs["validation"]["pair_auroc"]
    other = replace(plan, search=replace(plan.search, objective="tpr_at_fpr"))
    assert "has 15 non-lenses" in notes(Dataset.open(root), other)[0]


def test_the_search_ends_when_trial_after_trial_fails(dataset, write_sweep, tmp_path):
    sets = ("search.trials=9", "search.failures_in_a_row=2", "fixed.model.weights=no-such-file.pt")
    plan = load_plan(write_sweep("[8]"), sets)
    files = make_study_files(tmp_path / "s.db")
    assert work(dataset, plan, files, lambda _: None)
    result = recommend(open_again(files, plan, dataset), dataset, plan, files)
    assert result["trials"]["fail"] == 2
    assert result["recommended"] is None
    assert "no-such-file.pt" in result["notes"][-1]


def test_a_trial_that_lags_behind_the_median_is_pruned(dataset, write_sweep, tmp_path):
    """Earlier trials are put into the study; the real one cannot reach them in its first epoch."""
    plan = load_plan(
        write_sweep("[8]"),
        ("search.trials=3", "search.pruner_startup=2", "search.pruner_warmup_epochs=1",
         "search.baseline=false", "refit.top=1", "refit.seeds=[1]", "fixed.train.epochs=4"),
    )  # fmt: skip
    files = make_study_files(tmp_path / "s.db")
    study = open_again(files, plan, dataset)
    for value in (1e-4, 2e-4):
        params = {"model.width": 8, "optim.lr": 2e-3}
        distributions = {
            "model.width": optuna.distributions.CategoricalDistribution([8]),
            "optim.lr": optuna.distributions.FloatDistribution(1e-3, 3e-3, log=True),
        }
        reports = dict.fromkeys((1, 2, 3, 4), value)
        study.add_trial(
            optuna.create_trial(
                params=params, distributions=distributions, value=value,
                intermediate_values=reports,
            )
        )  # fmt: skip
    claimed = claim(study, files, plan)
    with claimed.lock:
        line = Worker(study, dataset, plan, files).run_trial(claimed)
    assert "pruned" in line
    assert study.trials[2].state == TrialState.PRUNED
    assert list(study.trials[2].intermediate_values) == [1]


def test_a_trial_is_given_to_one_worker_and_an_orphan_to_the_next(dataset, write_sweep, tmp_path):
    plan = load_plan(write_sweep("[8, 16]"), ("search.trials=2", "search.attempts=2"))
    files = make_study_files(tmp_path / "s.db")
    study = open_again(files, plan, dataset)
    first, second = claim(study, files, plan), claim(study, files, plan)
    assert (first.trial.number, second.trial.number) == (0, 1)
    assert claim(study, files, plan) is None  # both are held
    first.lock.close()  # as the kernel does when a process dies
    adopted = claim(study, files, plan)
    assert adopted.trial.number == 0
    assert adopted.again
    adopted.lock.close()
    assert claim(study, files, plan) is None  # dead twice: given up
    assert study.trials[0].state == TrialState.FAIL
    assert "died 2 times" in study.trials[0].user_attrs["failure"]
    second.lock.close()


def add_trials(study, count):
    """Trials of which every fifth was pruned and the seventh failed; the rate decides."""
    distributions = {
        "model.width": optuna.distributions.CategoricalDistribution([8, 16]),
        "optim.lr": optuna.distributions.FloatDistribution(1e-3, 3e-3, log=True),
    }
    for number in range(count):
        rate, width = 1e-3 * (1 + number / count * 2), (8, 16)[number % 2]
        value = (rate * 1e3 - 1.8) ** 2 + 0.01 * (width == 8)
        state = TrialState.PRUNED if number % 5 == 4 else TrialState.COMPLETE
        state = TrialState.FAIL if number == 6 else state
        study.add_trial(
            optuna.create_trial(
                params={"model.width": width, "optim.lr": rate},
                distributions=distributions,
                value=value if state == TrialState.COMPLETE else None,
                intermediate_values={1: value + 0.2},
                state=state,
                user_attrs={"failure": "RuntimeError: <b>shape</b>"} if number == 6 else {},
            )
        )


def test_a_page_of_a_study_under_way(dataset, write_sweep, tmp_path):
    file = str(write_sweep("[8, 16]", search="baseline = false"))
    plan = load_plan(file, ("search.trials=40",))
    files = make_study_files(tmp_path / "s.db")
    study = open_again(files, plan, dataset)
    add_trials(study, 30)
    shares = importance(study)
    assert shares.shares["optim.lr"] > 0.8
    assert sum(shares.shares.values()) == pytest.approx(1)
    low, high = shares.ranges["optim.lr"]
    assert low < shares.shares["optim.lr"] < high
    command = ["sweep", dataset, "--config", file, "--study", str(files.database), "--report",
               "--set", "search.trials=40"]  # fmt: skip
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    best = min((t for t in study.trials if t.value is not None), key=lambda t: t.value)
    assert f"{best.value:.4f}" in done.output
    assert f"optim.lr {best.params['optim.lr']:.3g}" in done.output
    assert "30 of 40 trials have ended: nothing is recommended yet." in done.output
    found = json.loads((files.folder / "sweep.json").read_text())
    assert found["recommended"] is None
    assert found["importance"] == pytest.approx(shares.shares)
    assert [Path(path).stem for path in found["plots"]] == [
        "history", "parallel", "slices", "importance"]  # fmt: skip
    assert all(Path(path).stat().st_size > 5000 for path in found["plots"])
    page = (files.folder / "sweep.html").read_text()
    assert "<script" not in page
    assert "&lt;b&gt;shape" in page
    assert "<b>shape" not in page
    assert page.count("<figure") == 4


def test_importances_need_enough_trials(dataset, write_sweep, tmp_path):
    plan = load_plan(write_sweep("[8, 16]"))
    files = make_study_files(tmp_path / "s.db")
    study = open_again(files, plan, dataset)
    add_trials(study, 20)  # of which 15 have finished
    found = recommend(study, dataset, plan, files)
    assert found["importance"] is None
    assert found["importance_reason"].startswith("Too few trials: 15 have finished")
    assert found["importance_reason"] in (files.folder / "sweep.html").read_text()


def test_a_study_refuses_other_data_or_another_space(dataset, write_sweep, tmp_path):
    plan = load_plan(write_sweep("[8, 16]"))
    files = make_study_files(tmp_path / "s.db")
    open_again(files, plan, dataset)
    with pytest.raises(ConfigError, match=r"begun with dataset_id = \w{64}, and now it is other"):
        open_study(files, plan, "other")
    with pytest.raises(ConfigError, match=r"begun with space\..* = 16, and now it is 24"):
        open_again(files, load_plan(write_sweep("[8, 24]")), dataset)
    study = open_again(files, plan, dataset)
    earlier = study.user_attrs["identity"]
    del earlier["base"]["data"]["d4"]
    study.set_user_attr("identity", earlier)  # as a version wrote it that had no such key
    open_again(files, plan, dataset)
    more = load_plan(write_sweep("[8, 16]"), ("search.trials=50",))
    open_again(files, more, dataset)  # more trials of the same is no other study


def test_what_is_no_study_is_told_before_anything_is_made(tmp_path):
    (tmp_path / "broken.db").write_text("no database")
    with pytest.raises(StorageError, match=r"broken\.db is not an SQLite database"):
        make_study_files(tmp_path / "broken.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        make_study_files(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"broken.db", "folder"}


def test_what_the_database_says_is_told_and_not_that_it_is_none(dataset, write_sweep, tmp_path):
    plan, files = load_plan(write_sweep("[8, 16]")), make_study_files(tmp_path / "s.db")
    open_again(files, plan, dataset)
    with files.database.open("r+b") as file:  # a format that SQLite reads and does not write
        file.seek(18)
        file.write(b"\3")
    with pytest.raises(StorageError, match=r"s\.db cannot be used: .*readonly database\.$"):
        open_again(files, plan, dataset)


@pytest.mark.parametrize("name", ["a?b.db", "a#b.db", "a%20b {c}.db", "x?mode=memory.db"])
def test_the_database_lies_where_it_was_named(dataset, write_sweep, tmp_path, name):
    folder = tmp_path / "studies"
    plan = load_plan(write_sweep("[8, 16]"))
    study = open_again(make_study_files(folder / name), plan, dataset)
    study.set_user_attr("kept", True)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {name}
    assert open_again(make_study_files(folder / name), plan, dataset).user_attrs["kept"]


def test_a_sweep_in_fp16_is_refused_where_there_is_no_gpu(
    dataset, write_sweep, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = load_plan(write_sweep("[8, 16]"), ("fixed.train.amp=fp16", "fixed.train.device=auto"))
    files = make_study_files(tmp_path / "s.db")
    with pytest.raises(ConfigError, match=r"Set train\.amp=auto"):
        sweep(dataset, plan, files, [], 1)
    assert not files.database.exists()


def test_each_worker_has_a_gpu_of_its_own():
    seen = [worker_environment(n, 4, ["2", "5"])["CUDA_VISIBLE_DEVICES"] for n in range(4)]
    assert seen == ["2", "5", "2", "5"]


def test_a_signal_while_workers_are_started_ends_them_all(tmp_path, monkeypatch):
    started, popen = [], subprocess.Popen

    def late(command, **options):
        started.append(popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(started) == 2:  # the process is there, but not yet in the list of those to be told
            signal.raise_signal(signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr("lenstrain.sweep.sweep.subprocess.Popen", late)
    study = optuna.create_study()
    assert supervise(study, ["sweep"], 3) == signal.SIGTERM
    assert [process.wait(60) for process in started] == [-signal.SIGTERM] * 3


def test_a_killed_worker_is_replaced_but_not_for_ever():
    _check_deaths(-9, MOST_DEATHS - 1)
    with pytest.raises(WorkerError, match=r"SIGKILL: out of memory\?.*fewer --workers"):
        _check_deaths(-9, MOST_DEATHS)
    with pytest.raises(WorkerError, match=r"killed \(SIGSEGV\)\. Repeat"):
        _check_deaths(-signal.SIGSEGV, MOST_DEATHS)
    with pytest.raises(WorkerError, match=r"stopped from outside\. Repeat"):
        _check_deaths(PREEMPTED, MOST_DEATHS)
    with pytest.raises(WorkerError, match="lines above"):
        _check_deaths(1, 1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "out of memory: "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory: CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: Default"),
        (OutOfMemoryError("Training ran out of memory."), "Training ran out of memory."),
        (RuntimeError("shape mismatch\nmore"), "RuntimeError: shape mismatch"),
    ],
)
def test_a_failure_is_described_in_a_line(error, expected):
    assert describe(error).startswith(expected)
    assert "\n" not in describe(error)


@pytest.mark.slow
def test_a_sweep_killed_in_a_trial_goes_on_and_recommends(dataset, write_sweep, tmp_path):
    """SIGKILL to parent and worker in the middle of a trial, then the same command again."""
    config = write_sweep(WIDTHS)
    database = tmp_path / "s.db"
    sets = ["--set", "fixed.train.epochs=40", "--set", "refit.top=1"]
    arguments = [dataset, "--config", config, "--study", database, *sets, "--json"]
    first = start(arguments)
    metrics = tmp_path / "s" / "trials"
    deadline = time.monotonic() + 120
    while not any(f.stat().st_size > 500 for f in metrics.glob("*/metrics.jsonl")):
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    killed = optuna.load_study(study_name=None, storage=f"sqlite:///{database}").trials
    (open_trial,) = [t for t in killed if t.state == TrialState.RUNNING]

    second = start(arguments)
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    result = json.loads(out)
    assert result["status"] == "completed"
    assert result["trials"]["complete"] + result["trials"]["fail"] == 3
    assert result["trials"]["fail"] >= 1
    assert result["trials"]["running"] == 0
    assert len(result["refits"][0]["values"]) == 3
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{database}").trials
    assert trials[open_trial.number].state == TrialState.COMPLETE
    assert trials[open_trial.number].params == open_trial.params
    # Every step was logged once: the killed trial went on from its checkpoint.
    log = metrics / f"trial-{open_trial.number:04d}" / "metrics.jsonl"
    steps = [r["step"] for r in map(json.loads, log.read_text().splitlines())
             if r["kind"] == "interval"]  # fmt: skip
    assert steps == sorted(set(steps))
    assert steps[-1] == 40 * 5 - 40 * 5 % 3


@pytest.mark.slow
def test_sigterm_saves_the_trial_and_says_so(dataset, write_sweep, tmp_path):
    arguments = [dataset, "--config", write_sweep("[8]"), "--study", tmp_path / "s.db",
                 "--set", "fixed.train.epochs=400"]  # fmt: skip
    sweep = start(arguments)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "s").glob("trials/*/checkpoints/last.pt")):
        assert sweep.poll() is None, sweep.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweep.terminate()
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 75
    assert "repeat the same command to continue" in err
    (trial,) = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 's.db'}").trials
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs["interrupted"]
