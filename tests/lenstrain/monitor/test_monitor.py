"""Runs in every state, read as they are and left as they are; the screen as text."""

import io
import json
import os
import platform
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

from lensprep.configfile import load_config, to_toml
from lensprep.errors import StorageError
from lensprep.store import open_store
from lenstrain.cli import main
from lenstrain.config import Config
from lenstrain.monitor.snapshot import expand, read_snapshot
from lenstrain.monitor.view import screen, sparkline
from lenstrain.monitor.watch import fitted, read_all
from tests.datasets import tiny_dataset
from tests.widths import assert_fits, at_every_width, set_width

SETTINGS = [
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16",
    "data.batch_size=12", "train.epochs=3", "train.log_every=2", "train.device=cpu",
    "train.pictures=false",
]  # fmt: skip


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make_run(folder, epochs=2, planned=10, *, process=None, gain=True, host=None, cut=False):
    """A run folder as the trainer leaves it, of 100 steps an epoch."""
    folder.mkdir(parents=True)
    config = load_config(Config, None, [f"train.epochs={planned}", "train.patience=3"])
    (folder / "config.toml").write_text(to_toml(config))
    facts = {"steps_per_epoch": 100, "host": host or platform.node(), "device": "cpu"}
    facts["process"] = os.getpid() if process is None else process
    (folder / "environment.json").write_text(json.dumps(facts))
    lines = []
    for number in range(1, epochs + 1):
        for step in (50, 100):
            done = 100 * (number - 1) + step
            lines.append({"kind": "interval", "step": done, "loss": 1 / number, "lr": 3e-4,
                          "samples_per_s": 512.0, "data_wait_share": 0.0,
                          "grad_norm": 0.5, "clipped_share": 0.0})  # fmt: skip
        lines.append({"kind": "epoch", "step": 100 * number, "epoch": number, "nll": 1 / number,
                      "train_loss": 1 / number, "auroc": 0.5 + 0.04 * number, "tpr_at_fpr": 0.1,
                      "validation_seconds": 10.0,
                      "epochs_without_gain": 0 if gain else number})  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + ('{"kind": "inter' if cut else ""))
    return str(folder)


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def test_every_state_is_told_apart(tmp_path):
    old = time.time() + 10_000
    gone = dead_process()
    running = make_run(tmp_path / "running")
    assert read_snapshot(str(tmp_path / "none")).status == "not started"
    assert read_snapshot(make_run(tmp_path / "starting", 0)).status == "starting"
    assert read_snapshot(running).status == "running"
    assert read_snapshot(running, now=old).status == "silent"
    assert read_snapshot(make_run(tmp_path / "finished", 10)).status == "finished"
    assert read_snapshot(make_run(tmp_path / "stopped", 4, gain=False)).status == "stopped"
    crashed = read_snapshot(make_run(tmp_path / "crashed", process=gone))
    assert crashed.status == "crashed"
    assert "--resume" in crashed.detail
    # A process number of another machine says nothing about this one's.
    assert read_snapshot(make_run(tmp_path / "far", process=gone, host="far")).status == "running"


def test_a_run_that_a_signal_ended_is_not_crashed(tmp_path):
    run = make_run(tmp_path / "run", process=dead_process())
    (tmp_path / "run" / "interrupted.json").write_text('{"signal": "SIGTERM", "step": 3}')
    snapshot = read_snapshot(run)
    assert snapshot.status == "interrupted"
    assert snapshot.detail.startswith("Ended by SIGTERM with its state saved; the last")
    assert "--resume" in snapshot.detail
    assert snapshot.seconds_left is None


def test_a_run_whose_loss_was_not_finite_is_crashed_and_diverges(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "run" / "nonfinite.json").write_text("{}")
    snapshot = read_snapshot(run)
    assert snapshot.status == "crashed"
    assert snapshot.diagnoses[0].name == "diverges"


def test_time_left_comes_from_measured_steps_and_validations(tmp_path):
    snapshot = read_snapshot(make_run(tmp_path / "run"))
    # 256 stamps at 512/s are half a second a step: 800 steps, and 8 validations of 10 s.
    assert snapshot.seconds_left == pytest.approx(800 * 0.5 + 8 * 10)
    assert read_snapshot(make_run(tmp_path / "end", 10)).seconds_left is None


def test_a_line_that_is_being_written_is_left_for_the_next_look(tmp_path):
    snapshot = read_snapshot(make_run(tmp_path / "run", cut=True))
    assert len(snapshot.history.intervals) == 4
    assert snapshot.step == 200


def test_a_folder_of_runs_gives_the_runs_in_it(tmp_path):
    runs = [make_run(tmp_path / "trials" / name) for name in ("a", "b")]
    assert expand([str(tmp_path / "trials"), "elsewhere"]) == [*runs, "elsewhere"]


def test_a_config_of_another_version_is_refused_in_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text("[optim]\nlearning = 1\n")
    with pytest.raises(StorageError, match="not of this version"):
        read_snapshot(run)


def test_the_screen_shows_numbers_their_course_and_what_they_mean(tmp_path):
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen([read_snapshot(make_run(tmp_path / "run"))]))
    text = console.export_text()
    for words in ("running", "epoch 2 of 10 done", "at most 8.0 min left", "best (epoch 2) 0.5800",
                  "converges", "The training loss fell from 1.0000 to 0.5000"):  # fmt: skip
        assert words in text


def test_on_a_narrow_screen_the_course_gives_way_and_the_numbers_stay_whole(tmp_path):
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(screen([read_snapshot(make_run(tmp_path / "a", 40, 60))]))
    lines = console.export_text().splitlines()
    rate = next(line for line in lines if "learning rate" in line)
    assert "3.00e-04  peak 3.00e-04" in rate
    assert "▁▁▁▁▁▁▁▁" in rate
    auroc = next(line for line in lines if "auroc" in line)
    assert "2.1000  best (epoch 40) 2.1000" in auroc
    assert auroc.rstrip(" │").endswith("█")  # up to now, not cut off


@at_every_width
def test_numbers_and_findings_fit_the_terminal(tmp_path, monkeypatch, columns):
    run = make_run(tmp_path / "a-run-of-a-rather-long-name-that-no-title-of-a-box-has-room-for")
    set_width(monkeypatch, columns)
    shown = CliRunner().invoke(main, ["monitor", run], catch_exceptions=False).stdout
    assert_fits(shown, columns, "best (epoch 2) 0.5800", "peak 3.00e-04", "converges")
    assert run in re.sub(r"[\s│]", "", shown)  # in a box it may take two lines
    assert ("╭" in shown) == (columns is not None)
    assert "\x1b" not in shown


@at_every_width
def test_many_runs_are_a_table_with_a_line_each(tmp_path, monkeypatch, columns):
    for number in range(7):
        make_run(tmp_path / f"trial-{number:04d}", 10 if number % 3 else number)
    set_width(monkeypatch, columns)
    done = CliRunner().invoke(main, ["monitor", str(tmp_path)], catch_exceptions=False)
    first, *rows, last = done.stdout.splitlines()
    assert_fits(done.stdout, columns, *(f"trial-{number:04d} " for number in range(7)))
    assert first.split()[:3] == ["run", "status", "epoch"]
    assert re.search(r"^trial-0001 +finished +10 of 10 +auroc +0\.9000 .*converges$", rows[1])
    assert last == "7 runs: 1 starting, 4 finished, 2 running"


def test_more_runs_than_lines_show_those_that_still_change_and_say_so(tmp_path):
    """A screen of ten lines for twenty runs: Rich would cut off what is below."""
    runs = [
        read_snapshot(make_run(tmp_path / f"{number:02d}", 1 if number == 17 else 10))
        for number in range(20)
    ]
    console = Console(file=io.StringIO(), width=80, height=10)
    console.print(fitted(runs, console))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 9
    assert any(line.startswith("17   running") for line in lines)
    assert lines[-1] == "(no room for 15 runs; without --watch all are shown)"
    console = Console(file=io.StringIO(), width=80, height=60)
    console.print(fitted(runs[:2], console))
    assert console.file.getvalue().count("╭") == 2


def test_a_sparkline_spans_low_to_high():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1, 1]) == "▁▁▁"
    assert len(sparkline(list(range(1000)), width=30)) == 30
    assert sparkline([float("nan")]) == ""


def test_the_command_prints_one_object_and_writes_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    before = contents(tmp_path)
    for arguments in (["--once", "--json"], []):
        done = CliRunner().invoke(main, ["monitor", run, *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        if arguments:
            (told,) = json.loads(done.stdout)["runs"]
    assert contents(tmp_path) == before
    assert (told["status"], told["epochs_done"], told["step"]) == ("running", 2, 200)
    assert told["best_epoch"] == 2
    assert told["diagnoses"][0]["name"] == "converges"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trails", "trails: no such file or folder; near it: trials."),
        ("zzz", "zzz: no such file or folder; {0} holds data, empty, other and 1 more."),
        ("no/a", "no/a: no such file or folder, and no folder {0}/no."),
        ("data", "it is a converted dataset."),
        ("other", "(it has no config.toml): it holds 0.txt, 1.txt, 2.txt and 1 more."),
        ("trials/a/checkpoints", "(it has no config.toml): it holds best.pt."),
        ("trials/a/checkpoints/best.pt", "not the folder of a run. Its run is {0}/trials/a."),
        ("other/0.txt", "is a file, not the folder of a run. Name a run's folder."),
    ],
)  # fmt: skip
def test_what_is_no_run_is_an_error_that_says_what_is_there(tmp_path, name, message):
    make_run(tmp_path / "trials" / "a")
    (tmp_path / "trials" / "a" / "checkpoints").mkdir()
    (tmp_path / "trials" / "a" / "checkpoints" / "best.pt").touch()
    for folder, files in (("data", ["manifest.json"]), ("empty", []),
                          ("other", [f"{i}.txt" for i in range(4)])):  # fmt: skip
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    done = CliRunner().invoke(main, ["monitor", str(tmp_path / name)])
    assert done.exit_code == 1
    assert message.format(tmp_path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_empty_folder_may_become_a_run_and_with_watch_an_absent_one(tmp_path):
    (tmp_path / "empty").mkdir()
    assert read_all([str(tmp_path / "empty")])[0].status == "not started"
    assert read_all([str(tmp_path / "none")], to_come=True)[0].status == "not started"


def test_watch_and_json_exclude_each_other(tmp_path):
    done = CliRunner().invoke(main, ["monitor", str(tmp_path), "--watch", "--json"])
    assert done.exit_code == 2


@pytest.mark.slow
def test_a_real_run_is_watched_to_its_end(tmp_path):
    """Trained in another process while this one watches it from before it begins."""
    dataset = tiny_dataset(tmp_path, {"train": 48, "val": 30}, signal=True)
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    program = [sys.executable, "-m", "lenstrain"]
    run = str(tmp_path / "run")
    watch = subprocess.Popen(
        [*program, "monitor", run, "--watch", "--interval", "0.2"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    train = [*program, "train", str(dataset), "--out", run, *sets]
    subprocess.run(train, check=True, capture_output=True)
    shown, _ = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert "finished" in shown
    assert "3 epochs done" in shown


@pytest.mark.slow
def test_a_run_in_an_object_store_is_read_there(tmp_path, s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    make_run(tmp_path / "run")
    store = open_store(f"{s3.uri}/run")
    assert read_snapshot(f"{s3.uri}/run").status == "not started"
    with pytest.raises(StorageError, match="it holds nothing"):
        read_all([f"{s3.uri}/run"])
    for name in ("config.toml", "environment.json", "metrics.jsonl"):
        store.write(name, (tmp_path / "run" / name).read_bytes())
    snapshot = read_snapshot(f"{s3.uri}/run")
    assert (snapshot.status, snapshot.step) == ("running", 200)
    assert {entry.name for entry in store.entries()} == {
        "config.toml", "environment.json", "metrics.jsonl",
    }  # fmt: skip
