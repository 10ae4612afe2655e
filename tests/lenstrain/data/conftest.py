"""A small dataset of two splits and several shards, for the tests of the loader and its parts."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from lensprep.dataset import Dataset
from tests.datasets import tiny_dataset
from tests.lenstrain.data.epochs import ROWS


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_no_garbage():
    """Collections of garbage, which tests here make, go through what is new: all takes seconds."""
    gc.freeze()


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), {"train": ROWS, "val": 40}, shard_rows=17)


@pytest.fixture(scope="session")
def stored(root):
    """Pixels and labels of its training split."""
    dataset = Dataset.open(root)
    labels = dataset.read_sidecar("train", ["label"])["label"].to_numpy()
    return dataset.read_pixels("train", np.arange(ROWS)), labels


@pytest.fixture
def own(tmp_path):
    """A dataset that the test may damage."""
    return tiny_dataset(tmp_path, ROWS, shard_rows=17)
