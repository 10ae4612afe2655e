"""Altered manifests, sidecars, tars and scores: a line each, or right; no crash and no flood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack

import pytest

SEED = 12
MOST_RSS_BYTES = 1_500_000_000


def start(folder, first, count):
    folder.mkdir()
    command = [sys.executable, "-m", "tests.faults.altered", folder, SEED, first, count]
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("cases", [120, pytest.param(100_000, marks=pytest.mark.faults)])
def test_an_altered_dataset_is_refused_in_a_line_or_read_right(tmp_path, cases):
    """Verify, inspect, the readers, the loader and scores; address space and time are limited."""
    workers = 1 if cases < 10_000 else max(1, (os.cpu_count() or 1))
    each = cases // workers
    counts, failures = Counter(), []
    with ExitStack() as stack:
        children = []
        for n in range(workers):
            children.append(stack.enter_context(start(tmp_path / str(n), n * each, each)))
            stack.callback(children[-1].kill)
        ended = [(child, *child.communicate()) for child in children]
    for number, (child, out, complaints) in enumerate(ended):
        present = (tmp_path / str(number) / "present").read_text()
        assert child.returncode == 0, f"case {present}: {child.returncode}: {complaints[-3000:]}"
        assert complaints == ""
        found = json.loads(out)
        counts.update(found["counts"])
        failures += found["failures"]
        assert found["peak_rss_bytes"] < MOST_RSS_BYTES
    assert not failures, "\n".join(failures)
    assert counts.total() == each * workers
    # Both happen at every door, or the alterations have become toothless.
    for door in ("verify", "inspect", "tar_alone", "dataset", "loader", "stock_tar", "scores"):
        assert counts[f"{door} refused"], counts
        assert counts[f"{door} right"], counts
