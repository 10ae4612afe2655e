"""Where a conversion writes."""

from __future__ import annotations

import shutil

import pytest

from lensprep.convert import convert
from lensprep.convert.plan import Plan
from lensprep.convert.sites import GROUP_SHARDS, Sites, row_bytes
from lensprep.dataset.geometry import DECALS
from lensprep.errors import BudgetError, ConfigError, DatasetError
from lensprep.store import LocalStore, S3Options
from tests.lensprep.convert.conversions import CONFIG, digests, interrupt
from tests.lensprep.convert.test_spill import LARGEST


def test_the_work_folder_may_hold_the_source_too(tree, dataset, tmp_path):
    convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1, work=str(tree.parent))
    assert digests(tmp_path / "ds") == digests(dataset)


def test_a_disk_that_is_too_small_is_told_before_the_work(tree, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 2 * 120 * row_bytes(DECALS) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BudgetError, match=r"takes up to 6\.6 MB of disk .* but 6\.6 MB are free"):
        convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert not (tmp_path / "ds").exists()


def test_space_grows_with_the_stamps(tmp_path):
    """Runs and shards together, each with its sidecar rows."""
    sites = Sites.of(Plan.new({}, "digest", None), LocalStore(tmp_path / "ds"), S3Options())
    for geometry in (DECALS, LARGEST):
        (need,) = sites.needs(1000, 100, 2, geometry)
        assert need.lasting == 1000 * row_bytes(geometry)
        assert need.bytes == 2 * need.lasting
    assert row_bytes(LARGEST) > 8 * 256 * 256 * 2


def test_fewer_large_shards_are_gathered_from_a_store_at_a_time(s3, tmp_path):
    plan = Plan.new({}, "digest", s3.uri)
    sites = Sites.of(plan, LocalStore(tmp_path / "ds"), s3.options())
    assert sites.group_shards(100, 2) == GROUP_SHARDS
    assert 1 <= sites.group_shards(100, 2, LARGEST) < GROUP_SHARDS


def test_the_work_may_lie_elsewhere_and_is_found_again(tree, tmp_path, monkeypatch):
    out, work = tmp_path / "ds", tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.conversion.second_round", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(tree), str(out), CONFIG, workers=1, work=str(work))
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["plan.json"]
    (folder,) = work.iterdir()
    assert list(folder.glob("run-*.dat"))
    with pytest.raises(DatasetError, match="Resume without --work"):
        convert(str(tree), str(out), CONFIG, workers=1, work=str(tmp_path), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.workfolder.write_run", None)
        convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    assert list(work.iterdir()) == []
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_copy_is_kept_only_of_what_is_elsewhere(tree, tmp_path):
    with pytest.raises(ConfigError, match="object store"):
        convert(str(tree), str(tmp_path / "ds"), CONFIG, keep_local=str(tmp_path / "kept"))
