"""Weights from a table of keys: of any writer, or refused in one line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset import Dataset
from lensprep.errors import ConfigError
from lenstrain.data.weights import read_weights
from tests.datasets import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(tiny_dataset(tmp_path_factory.mktemp("weights"), 40))


@pytest.mark.parametrize(
    ("keys", "weights", "message"),
    [
        (["2" + "0" * 31], [4.0], "not in the training split"),
        (["1" + "0" * 31], [-1.0], "negative"),
        (["1" + "0" * 31] * 2, [1.0, 2.0], "more than once"),
    ],
)
def test_weights_that_do_not_fit_the_split_are_refused(dataset, tmp_path, keys, weights, message):
    pq.write_table(pa.table({"key": keys, "weight": weights}), tmp_path / "w.parquet")
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "w.parquet", dataset.read_sidecar("train", ["key"])["key"])


@pytest.mark.parametrize(
    ("text", "number"),
    [(pa.large_string(), pa.int8()), (pa.string_view(), pa.float32()), (pa.binary(), pa.string()),
     (pa.dictionary(pa.int32(), pa.string()), pa.decimal128(20, 0))],
    ids=str,
)  # fmt: skip
def test_weights_of_any_writer_are_read_alike(dataset, tmp_path, text, number):
    keys = dataset.read_sidecar("train", ["key"])["key"].combine_chunks()
    listed = keys.slice(2, 2)
    listed = listed.dictionary_encode() if pa.types.is_dictionary(text) else listed.cast(text)
    table = {"key": listed, "weight": pa.array([3, 4]).cast(number)}
    pq.write_table(pa.table(table), tmp_path / "w.parquet")
    assert read_weights(tmp_path / "w.parquet", keys)[:5].tolist() == [1, 1, 3, 4, 1]


def test_a_file_that_is_no_list_of_weights_is_refused_in_one_line(dataset, tmp_path):
    (tmp_path / "w.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="lenstrain mine"):
        read_weights(tmp_path / "w.parquet", dataset.read_sidecar("train", ["key"])["key"])
