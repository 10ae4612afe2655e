"""The visit to a GPU: its budget, its table, and what it does about a part that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from lensprep.dataset import Dataset
from lensprep.inspection.verify import verify
from tests.benchmarks.gpu_day.goals import GOALS, goal_lines
from tests.benchmarks.gpu_day.stamps import make_dataset, plan
from tests.benchmarks.gpu_day.table import Table
from tests.benchmarks.gpu_day.visit import LEAST_SECONDS, ROOT, Visit
from tests.waiting import wait_until


@pytest.fixture
def visit(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    return Visit(Table.begin(tmp_path / "out"), tmp_path / "work", 60.0)


def python(code):
    return [sys.executable, "-c", code]


def test_a_part_that_succeeds_says_nothing_and_keeps_its_log(visit):
    assert visit.run("good", 60, python("print('here')"))
    assert visit.table.text() == ""
    assert visit.log("good").read_text() == "here\n"


def test_a_part_that_fails_has_a_line_with_its_error_and_the_next_one_begins(visit):
    assert not visit.run("bad", 60, python("print(1); raise ValueError('no such thing')"))
    assert visit.run("good", 60, python("pass"))
    assert visit.table.text() == "bad: exit 1: ValueError: no such thing\n"


def test_a_part_that_takes_too_long_is_ended_with_its_children(visit, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.gpu_day.visit.LEAST_SECONDS", 0.0)
    loop = "while :; do echo; sleep 0.05; done & wait"
    assert not visit.run("slow", 2, ["sh", "-c", loop])
    assert visit.table.text() == "slow: not done in its time\n"
    said = visit.log("slow").stat().st_size
    assert said > 0
    time.sleep(0.5)
    assert visit.log("slow").stat().st_size == said


def test_wheels_are_installed_without_a_network_for_this_visit_alone(visit, tmp_path):
    (tmp_path / "wheels").mkdir()
    visit.install(tmp_path / "wheels")
    assert visit.table.text() == f"wheels: none in {tmp_path / 'wheels'}\n"
    info = "carried_there-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "wheels" / "carried_there-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_there.py", "")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried-there\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    visit.install(tmp_path / "wheels")
    assert visit.run("there", 60, python("import carried_there"))


def test_no_part_begins_when_too_little_is_left(visit):
    visit.started -= visit.seconds - LEAST_SECONDS + 1
    assert not visit.run("late", 60, python("print('never')"))
    assert visit.table.text() == "late: left out, no time left\n"
    assert not visit.log("late").exists()


def test_no_part_runs_past_the_end_of_the_visit(visit, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.gpu_day.visit.LEAST_SECONDS", 0.0)
    visit.started = time.time() - visit.seconds + 2
    assert not visit.run("long", 600, python("import time; time.sleep(600)"))
    assert visit.spent() < visit.seconds + 30


def test_lines_and_figures_of_other_processes_are_in_the_table(visit):
    code = (
        "from pathlib import Path; from tests.benchmarks.gpu_day.table import Table; "
        f"t = Table(Path({str(visit.table.folder)!r})); t.say('found'); t.record(a=1, b=2.5)"
    )
    assert visit.run("part", 60, python(code))
    visit.table.record(a=3)
    assert visit.table.text() == "found\n"
    assert visit.table.figures() == {"a": 3, "b": 2.5}


def test_goals_are_reached_missed_or_not_measured():
    assert all("not measured" in line for line in goal_lines({})[1:])
    figures = {goal.figure: goal.limit for goal in GOALS}
    assert all(line.startswith("  reached") for line in goal_lines(figures)[1:])
    worse = {goal.figure: goal.limit + (-0.5 if goal.at_least else 0.5) for goal in GOALS}
    assert all(line.startswith("  missed") for line in goal_lines(worse)[1:])


def test_the_dataset_is_sound_and_an_eighth_of_it_is_to_validate_on(tmp_path):
    made = make_dataset(tmp_path / "dataset", plan(24, 10), processes=2)
    rows = {name: [shard.rows for shard in split.shards] for name, split in made.splits.items()}
    assert rows == {"train": [24] * 10, "val": [24, 6]}
    assert verify(str(tmp_path / "dataset"), workers=1)["faults"] == []
    data = Dataset.open(tmp_path / "dataset")
    train, val = (data.read_sidecar(split, ["key", "region_id"]) for split in ("train", "val"))
    assert len({*train["key"].to_pylist(), *val["key"].to_pylist()}) == 270
    assert not {*train["region_id"].to_pylist()} & {*val["region_id"].to_pylist()}


def test_gpu_tests_can_be_collected_with_pytorch_and_little_else():
    """As on a machine with a GPU and no network: `make test-gpu` must not end at an import."""
    absent = [
        "astropy", "boto3", "botocore", "dask", "datasets", "distributed", "hypothesis",
        "lenstronomy", "optuna", "pyspark", "pytest_timeout", "seaweedfs", "xdist",
    ]  # fmt: skip
    words = ["-q", "--collect-only", "-m", "gpu", "tests/gpu", "-o", "timeout=1800"]
    code = f"import sys, pytest; sys.modules.update(dict.fromkeys({absent})); "
    done = subprocess.run(
        python(f"{code} sys.exit(pytest.main({words}))"), cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_two_epochs_take_one_graph" in done.stdout


def start(tmp_path, *options):
    command = [sys.executable, "-m", "tests.benchmarks.gpu_day", "--out", tmp_path / "out"]
    return subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_visit_that_is_cut_off_prints_its_table(tmp_path):
    process = start(tmp_path, "--dry")
    wait_until((tmp_path / "out" / "dataset.log").exists, 120)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "==== the table, after" in out
    assert "not measured  infer, bf16" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_visit_without_a_gpu_is_refused_in_one_line(tmp_path):
    process = start(tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out.splitlines() == [
        "machine: exit 1: Error: PyTorch finds no GPU. --dry (DRY=1) tries the visit on a CPU."
    ]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_dry_visit_measures_everything_that_needs_no_gpu(tmp_path):
    out, _ = start(tmp_path, "--dry").communicate()
    table = out.partition("==== the table")[2]
    for name in (
        "dataset: train 128, val 16",
        "tests:",
        "ceiling: bf16 product",
        "scoring bf16",
        "compile=false: waits",
        "lenstrain train:",
        "infer ",
        "ranks at once",
        "stock WebDataset",
    ):
        assert name in table, table  # fmt: skip
    assert not [line for line in table.splitlines() if ": exit" in line or "not done" in line]
