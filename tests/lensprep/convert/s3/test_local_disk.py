"""Into an object store: little lies on the local disk, and a copy only if asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest
from click.testing import CliRunner

from lensprep.cli import main
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.errors import BudgetError, DatasetError
from tests.lensprep.convert.conversions import CONFIG, interrupt
from tests.lensprep.convert.s3.conversions import begin_and_stop, contents
from tests.phase4c import tiny_tree


class Watch:
    """The most bytes that lay in a folder at once."""

    def __init__(self, folder):
        self.folder, self.most = folder, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _run(self):
        while not self._done.wait(0.002):
            total = 0
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    try:
                        total += os.stat(os.path.join(folder, name)).st_size
                    except FileNotFoundError:
                        continue
            self.most = max(self.most, total)


def test_little_lies_on_the_local_disk_and_it_was_stated(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.convert.sites.GROUP_SHARDS", 4)
    tree = tiny_tree(tmp_path / "src", 500)
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 40)
    told = []
    with Watch(tmp_path / "tmp") as watch:
        convert(
            str(tree), s3.uri, ConvertConfig(shard_rows=20), workers=1, options=s3.options(),
            announce=lambda rows, needs: told.extend(needs),
        )  # fmt: skip
    (remote,), (local,) = ([n for n in told if n.is_local == kind] for kind in (False, True))
    assert remote.where == s3.uri
    assert remote.bytes == 2 * remote.lasting >= 2 * 500 * RECORD_STRIDE
    assert local.where.startswith(str(tmp_path / "tmp"))
    # The shards of one task, and one on its way.
    assert 4 * 20 * RECORD_STRIDE < watch.most <= local.bytes < 0.5 * remote.lasting
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_local_disk_that_is_too_small_is_told_before_the_work(tree, s3, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BudgetError, match=r"takes up to .* with --work, or with TMPDIR"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    assert s3.store().entries() == []


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_half_done(tree, whole, s3, tmp_path):
    # A limit on the size of files refuses a write in the middle, as a full disk does.
    code = """
        import resource, signal, sys
        from lensprep.cli import main
        from lensprep.convert import runs
        runs.RUN_ROWS = 16
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        main(sys.argv[1:])
    """
    arguments = [tree, s3.uri, "--shard-rows", "20", "--max-reject-rate", "1", "--workers", "1"]
    command = ["convert", *map(str, arguments), "--endpoint-url", s3.server.http]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *command], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "could not be written: File too large" in done.stderr
    assert done.stderr.count("Error:") == 1
    assert list((tmp_path / "tmp").iterdir()) == []
    again = CliRunner().invoke(main, [*command, "--resume"])
    assert again.exit_code == 0, again.stderr
    assert contents(s3) == contents(whole)


def test_a_copy_is_kept_if_asked_for(tree, whole, s3, tmp_path):
    kept = tmp_path / "kept"
    convert(str(tree), s3.uri, CONFIG, workers=1, keep_local=str(kept), options=s3.options())
    assert contents(kept) == contents(s3) == contents(whole)


def test_a_copy_is_not_kept_where_something_is(tree, s3, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"kept holds other files"):
        convert(str(tree), s3.uri, CONFIG, keep_local=str(kept), options=s3.options())
    begin_and_stop(tree, s3)
    (kept / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"kept is a finished dataset"):
        convert(str(tree), s3.uri, CONFIG, keep_local=str(kept), resume=True, options=s3.options())
    assert (kept / "thesis.tex").read_text() == "precious"


def test_a_kept_copy_is_made_whole_by_resume(tree, whole, s3, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    begin_and_stop(tree, s3, keep_local=str(kept))
    shutil.rmtree(kept)  # as if it had begun on another machine
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.commit.release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(
                str(tree), s3.uri, CONFIG, workers=1, resume=True, keep_local=str(kept),
                options=s3.options(),
            )  # fmt: skip
    convert(
        str(tree), s3.uri, CONFIG, workers=1, resume=True, keep_local=str(kept),
        options=s3.options(),
    )  # fmt: skip
    assert contents(kept) == contents(s3) == contents(whole)
