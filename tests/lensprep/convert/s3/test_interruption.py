"""Into an object store: killed or stopped at any moment, resumed, the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lensprep.dataset import Dataset
from lensprep.errors import DatasetError
from tests.faultproxy import Fault, FaultProxy
from tests.lensprep.convert.s3.conversions import contents, unfinished, without_groups
from tests.s3server import SECRET_KEY, Place
from tests.waiting import wait_until

PROGRAM = """
import sys
from lensprep.convert import runs
runs.RUN_ROWS = 40  # many tasks
from lensprep.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""


def start(tmp_path, s3, tree, *options, endpoint=None, program=PROGRAM):
    file = tmp_path / "program.py"
    file.write_text(program)
    arguments = ["convert", tree, s3.uri, "--shard-rows", 25, "--workers", 2, *options]
    return subprocess.Popen(
        [sys.executable, file, *map(str, arguments), "--endpoint-url", endpoint or s3.server.http],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def names(s3):
    return {entry.name for entry in s3.store().entries()}


def wait_for_objects(s3, process, part, before=frozenset()):
    """Until there is a new object whose name holds a text, or the dataset is finished."""
    while process.poll() is None:
        new = names(s3) - before
        if "manifest.json" in new or any(part in name for name in new):
            return
        time.sleep(0.02)


def test_a_stop_leaves_no_unfinished_upload(larger, s3, tmp_path):
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        proxy.add(Fault("stall", b"PUT /bucket", holding=b"partNumber=", times=1000))
        one_run = PROGRAM.replace(" = 40 ", " = 4096 ")  # of 13 MB, in three parts
        process = start(tmp_path, s3, larger[0], endpoint=proxy.url, program=one_run)
        wait_until(lambda: proxy.count("partNumber="))
        assert unfinished(s3)
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, out + errors
    assert unfinished(s3) == []


def kill_and_resume(tmp_path, s3, tree, rng, moments):
    kills, options = 0, []
    for part in [*moments, None]:
        before = names(s3)
        process = start(tmp_path, s3, tree, *options)
        if part is not None:
            wait_for_objects(s3, process, part, before)
            time.sleep(rng.uniform(0, 0.3))
        else:
            process.wait(120)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            options = ["--resume"]
            continue
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert SECRET_KEY not in out + errors
        break
    return kills


def test_killed_and_resumed_ends_in_the_same_bytes(larger, s3, tmp_path):
    tree, whole = larger
    assert kill_and_resume(tmp_path, s3, tree, random.Random(1), [".tar"]) >= 1
    assert without_groups(contents(s3)) == without_groups(contents(whole))
    assert unfinished(s3) == []
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_killed_at_many_random_moments(larger, s3, tmp_path):
    tree, whole = larger
    kills = 0
    for number in range(5):
        place = Place(s3.server)
        rng = random.Random(number)
        moments = [rng.choice(["plan", "run-0", ".tar", "rejects"]) for _ in range(5)]
        kills += kill_and_resume(tmp_path, place, tree, rng, moments)
        assert without_groups(contents(place)) == without_groups(contents(whole))
        assert unfinished(place) == []
    assert kills >= 8


@pytest.mark.slow
def test_a_signal_stops_cleanly_and_resume_goes_on(larger, s3, tmp_path):
    tree, whole = larger
    process = start(tmp_path, s3, tree)
    wait_for_objects(s3, process, ".tar")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(s3.uri, s3.options())
    again = start(tmp_path, s3, tree, "--resume")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert without_groups(contents(s3)) == without_groups(contents(whole))
