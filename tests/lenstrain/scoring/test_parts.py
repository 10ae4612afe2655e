"""Finished parts of a table of scores: taken up again, joined once, or said to be missing."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ConfigError, DatasetError, InputError
from lenstrain.scoring.parts import FinishedParts

TREE = {"source": {"kind": "tree"}, "dataset": "t", "split": "val"}
DATASET = TREE | {"source": {"kind": "dataset"}}


def part(*keys):
    rows = len(keys)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "task_id": pa.array(keys, pa.string()),
            "logit": pa.array([0.5] * rows, pa.float32()),
            "source_file": pa.array(["a.parquet"] * rows, pa.string()),
            "source_row_group": pa.array([0] * rows, pa.int32()),
            "source_row": pa.array(range(rows), pa.int64()),
        }
    )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "s.parquet"


def test_parts_of_the_same_plan_are_taken_up_and_those_of_another_go(out):
    first = FinishedParts(out)
    assert first.begin({"rows": 4}, 2) == []
    first.write(1, part("c"), None)
    assert FinishedParts(out).begin({"rows": 4}, 2) == [1]
    assert FinishedParts(out).begin({"rows": 5}, 2) == []


def test_a_folder_without_a_finished_part_does_not_stay(out):
    finished = FinishedParts(out)
    finished.begin({}, 1)
    finished.leave()
    assert not list(out.parent.iterdir())
    finished.begin({}, 1)
    finished.write(0, part("a"), None)
    finished.leave()
    assert FinishedParts(out).begin({}, 1) == [0]


def test_parts_are_joined_in_order_and_each_key_once(out):
    finished = FinishedParts(out)
    finished.begin({}, 2)
    finished.write(1, part("b", "a"), None)
    finished.write(0, part("a"), None)
    account = finished.join(2, TREE, "")
    assert pq.read_table(out)["key"].to_pylist() == ["a", "b"]
    assert account["rows"] == 2
    assert account["rejected"] == {"duplicate_row": 1}
    assert pq.read_table(account["rejects"])["task_id"].to_pylist() == ["a"]
    with pytest.raises(DatasetError, match="1 rows repeat an earlier key"):
        finished.join(2, DATASET, "")


def test_a_missing_part_and_a_table_without_rows_are_clear_errors(out):
    finished = FinishedParts(out)
    finished.begin({}, 2)
    finished.write(0, part(), None)
    with pytest.raises(ConfigError, match=r"lacks part-000001\.parquet\. Look for it\."):
        finished.join(2, TREE, "Look for it.")
    with pytest.raises(InputError, match="t has no stamp of split 'val' to score: no rows"):
        finished.join(1, TREE, "")
    assert not out.exists()
