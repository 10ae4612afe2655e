"""Counterfactuals on their way into a dataset, beside the rows that they were made from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lensprep.convert import convert
from lensprep.dataset import Dataset
from lensprep.dataset.layout import JSON_OFFSET
from lensprep.errors import ConfigError, DatasetError
from lensprep.inspection.verify import verify
from tests.lensprep.convert.conversions import CONFIG, digests, interrupt, rejects
from tests.phase4c import set_columns, tiny_counterfactuals, write_tree

FAMILY = ["task_id", "counterfactual", "host_task_id", "donor_task_id"]


@pytest.fixture(scope="module")
def made(table):
    return tiny_counterfactuals(table, pairs=24)


@pytest.fixture(scope="module")
def both(tree, made, tmp_path_factory):
    """The two trees, as they are given to a conversion."""
    extra = write_tree(tmp_path_factory.mktemp("made") / "made", made, files_per_split=1)
    return [str(tree), str(extra)]


@pytest.fixture(scope="module")
def result(both, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ds"
    return out, convert(both, str(out), CONFIG, workers=1)


def rows_of(root, columns=None):
    dataset = Dataset.open(root)
    return pa.concat_tables(
        dataset.read_sidecar(split, columns) for split in dataset.manifest.splits
    )


def test_ordinary_rows_keep_every_pixel_and_value(result, dataset):
    alone, beside = Dataset.open(dataset), Dataset.open(result[0])
    for split in alone.manifest.splits:
        before = alone.read_sidecar(split)
        after = beside.read_sidecar(split)
        place = pc.index_in(before["key"], value_set=after["key"].combine_chunks()).to_numpy()
        stored = beside.read_pixels(split, place)
        expected = alone.read_pixels(split, np.arange(before.num_rows))
        assert (stored.view(np.uint16) == expected.view(np.uint16)).all()
        same = [name for name in before.column_names if name != "source_file"]
        assert after.take(pa.array(place)).select(same).equals(before.select(same))


def test_a_dataset_without_them_has_no_word_of_them(dataset, tree):
    manifest = Dataset.open(dataset).manifest
    assert all(split.counterfactuals == {} for split in manifest.splits.values())
    for path in [path for path in dataset.rglob("*") if path.is_file()]:
        assert b"counterfactual" not in path.read_bytes()
    assert manifest.source["uri"] == str(tree)
    assert rows_of(dataset, ["source_file"])["source_file"][0].as_py().startswith("region_split=")


def test_the_sidecar_has_what_the_trees_say(result, made, table):
    found = rows_of(result[0])
    assert found.num_rows == table.num_rows + made.num_rows
    counterfactuals = found.filter(pc.field("counterfactual").is_valid())
    names = [name for name in made.column_names if name != "stamp_npz"]
    assert (
        counterfactuals.select(names)
        .sort_by("task_id")
        .equals(made.select(names).sort_by("task_id"))
    )
    lensed = pc.equal(counterfactuals["counterfactual"], "lensed")
    assert pc.equal(counterfactuals["label"], lensed.cast(pa.int8())).to_pylist() == [True] * 48
    ordinary = found.filter(pc.field("counterfactual").is_null())
    assert all(ordinary[name].null_count == 120 for name in FAMILY[1:])
    files = {row["source_file"].split("/")[0] for row in counterfactuals.to_pylist()}
    assert files == {"made"}


def test_the_json_of_a_record_names_the_kind_of_a_counterfactual_only(result):
    dataset, kinds = Dataset.open(result[0]), []
    for split in dataset.manifest.splits:
        for shard in dataset.split(split).shards:
            side = dataset.read_shard_sidecar(shard).to_pylist()
            tar = np.asarray(dataset.read_tar(shard))[: -2 * 512].reshape(len(side), -1)
            for row, record in zip(side, tar, strict=True):
                fields = json.loads(bytes(record[JSON_OFFSET:]))
                assert fields.get("counterfactual") == row["counterfactual"]
                assert ("counterfactual" in fields) == (row["counterfactual"] is not None)
                kinds.append(fields.get("counterfactual"))
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        None: 120, "unlensed": 24, "lensed": 24,
    }  # fmt: skip


def test_manifest_and_report_count_them_by_kind(result, made):
    out, report = result
    splits = Dataset.open(out).manifest.splits
    assert {*splits} == {"train", "val", "test"}
    for name, split in splits.items():
        held = made.filter(pc.equal(made["region_split"], name))["counterfactual"].to_pylist()
        assert split.counterfactuals == {"lensed": held.count("lensed"), "unlensed": len(held) // 2}
        assert report["splits"][name]["counterfactuals"] == split.counterfactuals
        assert sum(split.classes.values()) == split.rows  # they are among the rows and classes
    assert report["input_rows"] == report["accepted"] == 120 + 48
    stated = json.loads((out / "manifest.json").read_text())["source"]
    assert stated["rows"] == 168
    assert stated["uri"].endswith("/made")


def test_neither_order_nor_workers_nor_layout_change_the_tars(both, result, made, tmp_path):
    other = write_tree(tmp_path / "made", made, hive=False, row_group_rows=100)
    convert([str(other), both[0]], str(tmp_path / "ds"), CONFIG, workers=2)
    assert digests(tmp_path / "ds") == digests(result[0])


def test_one_tree_in_a_list_is_that_tree(tree, dataset, tmp_path):
    convert([str(tree)], str(tmp_path / "ds"), CONFIG, workers=1)
    for path in dataset.rglob("*"):
        if path.is_file():
            assert (tmp_path / "ds" / path.relative_to(dataset)).read_bytes() == path.read_bytes()


def test_verify_compares_every_row_with_all_trees(both, result, tree):
    assert verify(str(result[0]), against=both[::-1], sample=None, workers=1)["compared"] == 168
    (fault,) = verify(str(result[0]), against=str(tree), workers=1)["faults"]
    assert f"names another source than {tree}: {both[0]} {both[1]} with" in fault["what"]


def test_what_is_wrong_with_a_counterfactual_rejects_it(tree, made, tmp_path):
    hosts = [None, *made["host_task_id"].to_pylist()[1:]]
    kinds = [
        "unlensed",
        "unlensed",
        *made["counterfactual"].to_pylist()[2:],
    ]  # the second is a lens
    bad = set_columns(made, {"host_task_id": hosts, "counterfactual": kinds})
    extra = write_tree(tmp_path / "bad", bad)
    report = convert([str(tree), str(extra)], str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["rejected"] == {"incomplete_counterfactual": 1, "label_conflict": 1}
    assert report["accepted"] == 120 + 46
    by_reason = {row["reason"]: row for row in rejects(tmp_path / "ds")}
    assert {row["class"] for row in by_reason.values()} == {"counterfactual"}
    assert by_reason["incomplete_counterfactual"]["task_id"] == made["task_id"][0].as_py()
    assert by_reason["incomplete_counterfactual"]["source_file"].startswith("bad/region_split=")


def test_the_account_has_a_class_of_their_own(tree, made, tmp_path):
    twice = pa.concat_tables([made, made.slice(0, 3)])
    extra = write_tree(tmp_path / "twice", twice)
    report = convert([str(tree), str(extra)], str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["rejected"] == {"duplicate_row": 3}
    assert {row["class"] for row in rejects(tmp_path / "ds")} == {"counterfactual"}
    rows, accepted = (
        {
            label: sum(of_split[label][what] for of_split in splits)
            for label in ("0", "1", "counterfactual")
        }
        for splits in [Dataset.open(tmp_path / "ds").manifest.account["splits"].values()]
        for what in ("input_rows", "accepted")
    )
    assert rows == {"0": 60, "1": 60, "counterfactual": 51}
    assert accepted == rows | {"counterfactual": 48}


def test_a_kind_of_a_later_version_is_kept_as_a_counterfactual(tree, made, tmp_path):
    light = made.filter(pc.equal(made["counterfactual"], "unlensed"))
    later = set_columns(light, {"counterfactual": ["sheared"] * light.num_rows})
    extra = write_tree(tmp_path / "later", later)
    report = convert([str(tree), str(extra)], str(tmp_path / "ds"), CONFIG, workers=1)
    kinds = [split["counterfactuals"] for split in report["splits"].values()]
    assert sum(kind["sheared"] for kind in kinds) == 24


def test_only_the_same_trees_resume_a_conversion(both, tree, tmp_path, monkeypatch):
    out = str(tmp_path / "ds")
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.conversion.second_round", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(both, out, CONFIG, workers=1)
    with pytest.raises(DatasetError, match=f"of other source files than {tree} has now"):
        convert(str(tree), out, CONFIG, workers=1, resume=True)
    report = convert(both[::-1], out, CONFIG, workers=1, resume=True)
    assert report["accepted"] == 168
    with pytest.raises(DatasetError, match="is a finished dataset of other source files than"):
        convert(str(tree), out, CONFIG, workers=1, resume=True)


def test_no_tree_may_hold_the_dataset(both, tmp_path):
    inside = f"{both[1]}/ds"
    with pytest.raises(ConfigError, match="would be read as rows of the source"):
        convert(both, inside, CONFIG, workers=1)


def test_a_family_across_splits_is_a_fault_of_the_dataset(both, made, table, tmp_path):
    """A host elsewhere is a fault; one that conversion left out is none."""
    rows = table.to_pylist()
    (other,) = [row["task_id"] for row in rows if row["region_split"] == "val"][:1]
    hosts = made["host_task_id"].to_pylist()
    train = made["region_split"].to_pylist().index("train")
    hosts[train], hosts[-1] = other, "left out by a cut of the user's"
    extra = write_tree(tmp_path / "astray", set_columns(made, {"host_task_id": hosts}))
    convert([both[0], str(extra)], str(tmp_path / "ds"), CONFIG, workers=1)
    (fault,) = verify(str(tmp_path / "ds"), workers=1)["faults"]
    assert fault["file"] == "train"
    assert fault["what"] == (
        "1 counterfactuals of train have their host_task_id in another split; the first is "
        f"{made['task_id'][train].as_py()}, of {other}"
    )


def test_a_manifest_that_counts_others_is_a_fault(result, tmp_path):
    shutil.copytree(result[0], tmp_path / "ds")
    path = tmp_path / "ds" / "manifest.json"
    data = json.loads(path.read_text())
    data["splits"]["val"]["counterfactuals"]["lensed"] -= 1
    path.write_text(json.dumps(data))
    (fault,) = verify(str(tmp_path / "ds"), workers=1)["faults"]
    assert "states counterfactuals of val as" in fault["what"]
    data["splits"]["val"]["counterfactuals"]["lensed"] = 1000
    path.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match="are more than the rows of their classes"):
        Dataset.open(tmp_path / "ds")
