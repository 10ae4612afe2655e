"""One conversion in a folder: what is there stays, and what was begun goes on."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.errors import BudgetError, DatasetError, InputError, SchemaError
from lensprep.inspection.verify import verify
from tests.lensprep.convert.conversions import CONFIG, contents, digests, interrupt
from tests.phase4c import tiny_table, tiny_tree, write_tree

CONFIG_40 = ConvertConfig(max_reject_rate=1.0)


def test_a_dataset_of_a_version_that_dropped_nothing_may_be_resumed(tree, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "ds")
    path = tmp_path / "ds" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["drop_columns"]
    path.write_text(json.dumps(manifest))
    assert convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1, resume=True)["accepted"]


def test_shards_of_a_conversion_that_failed_are_gone_in_the_corrected_one(tmp_path):
    """Rows that are there twice are found only when the shards are written."""
    doubled = pa.concat_tables([tiny_table(40), tiny_table(40)])
    tree, out = write_tree(tmp_path / "src", doubled), tmp_path / "ds"
    with pytest.raises(BudgetError, match=r"duplicate_row 40\).*them all but duplicates\."):
        convert(str(tree), str(out), ConvertConfig(shard_rows=4), workers=1)
    assert len(list(out.rglob("*.tar"))) > 6
    convert(str(tree), str(out), CONFIG, workers=1)
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_goes_on_after_it_failed_is_protected_again(tmp_path):
    tree = tiny_tree(tmp_path, 40, stamp_npz=[b"", *tiny_table(40)["stamp_npz"].to_pylist()[1:]])
    out = tmp_path / "ds"
    with pytest.raises(BudgetError, match="1 of 40"):
        convert(str(tree), str(out), ConvertConfig(), workers=1)
    with pytest.raises(KeyboardInterrupt):
        convert(str(tree), str(out), CONFIG_40, workers=1, progress=interrupt)
    other = ConvertConfig(seed=9, max_reject_rate=1.0)
    with pytest.raises(DatasetError, match="Add --resume"):
        convert(str(tree), str(out), other, workers=1)
    with pytest.raises(DatasetError, match="begun with seed = 0, not 9"):
        convert(str(tree), str(out), other, workers=1, resume=True)
    assert convert(str(tree), str(out), CONFIG_40, workers=1, resume=True)["accepted"] == 39


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "none", InputError, "no such file or folder"),
        (lambda p: p, InputError, "holds no .parquet file"),
        (
            lambda p: tiny_tree(p, 12, change=lambda t, _: t.drop_columns(["psfsize_r"])),
            SchemaError,
            "column psfsize_r is missing",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, make, error, message):
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    with pytest.raises(error, match=message) as caught:
        convert(str(source), str(tmp_path / "ds"), workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds").exists()


def test_a_folder_that_holds_something_is_refused(tree, tmp_path):
    out = tmp_path / "ds"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match="conversion but other files"):
        convert(str(tree), str(out), workers=1, resume=True)
    assert (out / "thesis.tex").read_text() == "precious"


def test_a_finished_dataset_is_not_overwritten(tree, tmp_path):
    out = tmp_path / "ds"
    convert(str(tree), str(out), CONFIG, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(DatasetError, match="finished dataset already"):
        convert(str(tree), str(out), CONFIG, workers=1)
    other = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="made with seed = 0, not 9"):
        convert(str(tree), str(out), other, workers=1, resume=True)
    less = write_tree(tmp_path / "src", tiny_table(60))
    with pytest.raises(DatasetError, match="finished dataset of other source files"):
        convert(str(less), str(out), CONFIG, workers=1, resume=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("text", ["", "x", "3", "[1]"])
def test_a_plan_that_is_none_is_told(tree, tmp_path, text, resume):
    (tmp_path / "ds" / ".work").mkdir(parents=True)
    (tmp_path / "ds" / ".work" / "plan.json").write_text(text)
    with pytest.raises(DatasetError, match=r"plan\.json that is not the plan of a conversion"):
        convert(str(tree), str(tmp_path / "ds"), ConvertConfig(), workers=1, resume=resume)


def test_resume_of_what_is_finished_is_done(tree, tmp_path, monkeypatch):
    out = tmp_path / "ds"
    first = convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr("lensprep.convert.runs.run_rows", None)  # nothing is read again
    again = convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    clock = ("seconds", "stamps_per_s", "peak_rss_bytes")
    assert {k: v for k, v in again.items() if k not in clock} == {
        k: v for k, v in first.items() if k not in clock
    }
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_resume_repeats_nothing_and_refuses_another_configuration(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 16)
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    out = tmp_path / "ds"
    seen = []

    def stop(phase, done, total):
        seen.append(phase)
        if phase == "shards" and seen.count("shards") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(tree), str(out), CONFIG, workers=1, progress=stop)
    with pytest.raises(DatasetError, match="Add --resume"):
        convert(str(tree), str(out), CONFIG, workers=1)
    changed = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="begun with seed = 0, not 9"):
        convert(str(tree), str(out), changed, workers=1, resume=True)
    done = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".dat", ".tar")}
    # A second run of any first-round task fails.
    monkeypatch.setattr("lensprep.convert.workfolder.write_run", None)
    convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    assert digests(out) == digests(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in done.items() if p.exists())


def test_resume_refuses_a_source_that_changed(tree, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)

    def stop(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(source), str(tmp_path / "ds"), CONFIG, workers=1, progress=stop)
    next(source.rglob("*.parquet")).unlink()
    with pytest.raises(DatasetError, match="other source files"):
        convert(str(source), str(tmp_path / "ds"), CONFIG, workers=1, resume=True)


def test_killed_between_commit_and_clean_up_is_finished_by_resume(tree, tmp_path, monkeypatch):
    out = tmp_path / "ds"
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.commit.release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(tree), str(out), CONFIG, workers=1)
    assert (out / ".work").exists()
    first = Dataset.open(out)
    again = convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    assert again["dataset_id"] == first.dataset_id
    assert not (out / ".work").exists()
    assert verify(str(out), workers=1)["ok"]


def test_of_two_that_begin_at_once_one_is_refused(tree, tmp_path, monkeypatch):
    out = tmp_path / "ds"

    def other_begins(*_):
        with monkeypatch.context() as patch:
            patch.setattr("lensprep.convert.conversion.first_round", interrupt)
            with pytest.raises(KeyboardInterrupt):
                convert(str(tree), str(out), CONFIG, workers=1)

    with pytest.raises(DatasetError, match="has just begun"):
        convert(str(tree), str(out), CONFIG, workers=1, announce=other_begins)
    assert convert(str(tree), str(out), CONFIG, workers=1, resume=True)["accepted"] == 120
