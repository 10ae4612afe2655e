"""Ten million rows: the first batch comes at once and takes little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets import tiny_dataset
from tests.lenstrain.data import ten_million

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ten_million")
    ten_million.write(root)
    return root


def first_batch(root):
    command = [sys.executable, "-m", "tests.lenstrain.data.ten_million", root]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_first_batch_of_ten_million_rows_comes_within_two_seconds(root):
    """In less than 300 MB beyond the read-ahead budget. The first try may compile kernels."""
    tries = [first_batch(root) for _ in range(3)]
    assert min(found["seconds"] for found in tries) < 2
    assert max(found["over_budget"] for found in tries) < 300e6
    assert tries[0]["rows"] == 256


def test_the_first_batch_does_not_wait_for_pandas(tmp_path):
    """Arrow imports it, where it is installed, to make an array: a second, and tens of MB."""
    pytest.importorskip("pandas")
    root = tiny_dataset(tmp_path)
    code = (
        "import sys; from lenstrain.data import StampLoader; "
        "next(iter(StampLoader(sys.argv[1]))); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, root], cwd=REPOSITORY).returncode == 0
