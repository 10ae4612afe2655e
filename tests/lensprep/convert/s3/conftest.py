"""Trees, what a local conversion makes of them, and small runs."""

from __future__ import annotations

import tempfile

import pytest

from lensprep.convert import ConvertConfig, convert
from tests.lensprep.convert.conversions import CONFIG
from tests.lensprep.convert.s3.conversions import small_runs
from tests.phase4c import tiny_table, write_tree


@pytest.fixture(scope="session")
def table():
    blobs = tiny_table(120)["stamp_npz"].to_pylist()
    blobs[5] = b""
    return tiny_table(120, stamp_npz=blobs)


@pytest.fixture(scope="session")
def tree(table, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=2, row_group_rows=8)


@pytest.fixture(scope="session")
def whole(tree, tmp_path_factory):
    """The same conversion on a local disk."""
    out = tmp_path_factory.mktemp("whole") / "ds"
    with pytest.MonkeyPatch.context() as patch:
        small_runs(patch)
        convert(str(tree), str(out), CONFIG, workers=1)
    return out


@pytest.fixture(autouse=True)
def patched(monkeypatch, tmp_path):
    """Small runs; local files for a moment go where a test can see them."""
    small_runs(monkeypatch)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture(scope="session")
def larger(tmp_path_factory):
    table = tiny_table(500)
    tree = write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=3, row_group_rows=20)
    out = tmp_path_factory.mktemp("whole") / "ds"
    convert(str(tree), str(out), ConvertConfig(shard_rows=25), workers=1)
    return tree, out
