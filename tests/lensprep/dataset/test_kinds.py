"""What a location holds, recognised from names: the right thing and its command, or nothing."""

import pytest

from lensprep.dataset import Dataset
from lensprep.dataset.kinds import folder_kind, table_kind
from lensprep.errors import DatasetError


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["manifest.json", "val/val-000000.tar"], "a converted dataset. `lensprep inspect`"),
        ([".work/plan.json", "val/val-000000.tar"], "a conversion that did not finish"),
        (["config.toml", "checkpoints/last.pt", "a.parquet"], "the folder of a training run"),
        (["val-000000.tar", "val-000000.parquet"], "a folder of shards"),
        (["val/val-000000.parquet"], "a folder of shards"),
        (
            ["phase4c/a.parquet", "dataset/manifest.json", "dataset/val/val-000000.parquet"],
            "a folder with a dataset in it: name its folder dataset",
        ),
        (["region_split=val/part-0.parquet", "_SUCCESS"], "a tree of parquet files"),
        (["a/b.FITS.GZ", "list.csv"], "a folder of cutouts"),
        (["a.npz"], "a folder of cutouts"),
        (["config.toml", "notes.txt"], None),
        ([], None),
    ],
)
def test_a_folder_is_told_by_its_files(names, kind):
    found = folder_kind(names)
    assert found is None if kind is None else found.startswith(kind)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (["key", "label", "payload_crc32"], "the sidecar of a shard"),
        (["task_id", "kind", "reason", "source_row_group"], "a list of rows that were left out"),
        (["key", "label", "logit", "payload_crc32"], "a table of scores"),
        (["key", "label"], None),
    ],
)
def test_a_table_is_told_by_its_columns(columns, kind):
    found = table_kind(columns)
    assert found is None if kind is None else found.startswith(kind)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("region_split=val/part-0.parquet", "it is a tree of parquet files. `lensprep check` says"),
        ("checkpoints/best.pt", "converting or copying one did not finish"),
    ],
)
def test_what_is_no_dataset_is_told(tmp_path, name, message):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=message):
        Dataset.open(tmp_path)
