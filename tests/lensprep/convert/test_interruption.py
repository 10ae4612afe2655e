"""Interrupted conversions: killed at any moment, resumed, they end in the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.inspection.verify import verify
from tests.phase4c import tiny_table, write_tree

SHARD_ROWS = 50
PROGRAM = """
import sys
from lensprep.convert import runs
runs.RUN_ROWS = 40  # many tasks
from lensprep.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    table = tiny_table(600)
    return write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=3, row_group_rows=20)


def digests(root):
    manifest = Dataset.open(root).manifest
    return {s.name: s.sha256 for split in manifest.splits.values() for s in split.shards}


def begin(tmp_path, tree, out, *options):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = ["convert", tree, out, "--shard-rows", str(SHARD_ROWS), "--workers", "2", *options]
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs this in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def work(out):
    return {*out.glob(".work/run-*.json"), *out.glob("*/*.tar"), *out.glob("manifest.json")}


def wait_for_work(out, process, before=frozenset()):
    """Until the process has done a part of its own, or has ended."""
    while work(out) == before and process.poll() is None:
        time.sleep(0.005)


def kill_and_resume(tmp_path, tree, out, rng, most):
    """Kill the whole process group at random moments until a run gets through."""
    kills, options = 0, []
    while True:
        before = work(out)
        process = begin(tmp_path, tree, out, *options)
        if kills < most:
            wait_for_work(out, process, before)
            time.sleep(rng.uniform(0, 0.5))
        else:
            process.wait(120)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            process.stderr.close()
            kills += 1
            options = ["--resume"]
            continue
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        return kills


def test_killed_and_resumed_ends_in_the_same_bytes(tree, tmp_path):
    whole = tmp_path / "whole"
    convert(str(tree), str(whole), ConvertConfig(shard_rows=SHARD_ROWS), workers=1)
    kills = kill_and_resume(tmp_path, tree, tmp_path / "ds", random.Random(1), most=1)
    assert kills >= 1
    assert digests(tmp_path / "ds") == digests(whole)
    assert verify(str(tmp_path / "ds"), against=str(tree), sample=None, workers=1)["ok"]


@pytest.mark.slow
def test_killed_at_many_random_moments(tree, tmp_path):
    whole = tmp_path / "whole"
    convert(str(tree), str(whole), ConvertConfig(shard_rows=SHARD_ROWS), workers=1)
    kills = 0
    for round_number in range(8):
        out = tmp_path / f"ds{round_number}"
        kills += kill_and_resume(tmp_path, tree, out, random.Random(round_number), most=5)
        assert digests(out) == digests(whole)
        assert verify(str(out), workers=1)["ok"]
    assert kills >= 8


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_stops_cleanly_and_resume_goes_on(tree, tmp_path, monkeypatch, number):
    for attempt in range(5):  # a fast machine may be done before the signal comes
        out = tmp_path / f"ds{attempt}"
        process = begin(tmp_path, tree, out)
        wait_for_work(out, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.partial"))
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 40)
    convert(str(tree), str(out), ConvertConfig(shard_rows=SHARD_ROWS), workers=1, resume=True)
    assert verify(str(out), workers=1)["ok"]
