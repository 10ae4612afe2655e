"""Which rows make an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensprep.dataset import Dataset
from lensprep.errors import ConfigError, DatasetError, StorageError
from lenstrain.data import StampLoader, hard_negative_weights
from tests.datasets import tiny_dataset
from tests.lenstrain.data.epochs import ROWS, real_index, rest_after


def test_where_reads_only_the_rows_that_fit(root):
    table = Dataset.open(root).read_sidecar("train", ["theta_e_arcsec", "psfsize_r"])
    ratio = table["theta_e_arcsec"].to_numpy() / table["psfsize_r"].to_numpy()
    loader = StampLoader(root, batch_size=8, where="theta_e_arcsec / psfsize_r >= 0.5")
    assert sorted(real_index(loader)) == np.flatnonzero(ratio >= 0.5).tolist()


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_limit_keeps_the_first_rows(root, shuffle):
    assert sorted(real_index(StampLoader(root, shuffle=shuffle, limit=23))) == list(range(23))
    lenses = StampLoader(root, shuffle=shuffle, where="label == 1", limit=5)
    assert sorted(real_index(lenses)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "theta_e_arcse > 1"}, "Did you mean theta_e_arcsec"),
        ({"where": "label == 7"}, "keeps no row of split 'train'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"sampling": "fair"}, "sampling must be 'uniform' or 'balanced', got 'fair'"),
        ({"sampling": "balanced", "where": "label == 1"}, "there is no non-lens row"),
        ({"weights": np.ones(3)}, "one for each of the split's 100 rows"),
        ({"weights": np.zeros(ROWS)}, "must not all be zero, and those of all 100 rows are"),
        ({"weights": np.r_[np.ones(ROWS - 1), -2.0]}, "1 are not, the first that of row 99: -2"),
        (
            {"weights": np.arange(ROWS) % 2 == 0, "sampling": "balanced"},
            "all 50 lens rows have weight 0",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
        ({"shuffle": "blocks"}, "shuffle must be 'global', 'block' or None"),
        ({"verify": "md5"}, "verify must be 'size' or 'crc'"),
        ({"memory_budget": 10_000}, "memory_budget of 10000 bytes"),
        ({"batch_size": 200, "drop_last": True}, "100 rows an epoch, less than one global batch"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(root, options, message):
    with pytest.raises(ConfigError, match=message):
        StampLoader(root, **options)


def test_an_unknown_split_is_refused(root):
    with pytest.raises(DatasetError, match="no split 'all'; it has: train, val"):
        StampLoader(root, "all")


def test_tars_in_an_object_store_are_refused_before_anything_is_asked_of_it():
    with pytest.raises(StorageError, match="tars without a manifest are read from a local disk"):
        StampLoader("s3a://bucket/a.tar")


def unbalanced(tmp_path):
    root = tiny_dataset(tmp_path, 200, shard_rows=64)
    # One lens in ten of the even rows' class.
    return root, "label == 0 or region_id < 100007"


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_balanced_epochs_hold_both_classes_equally_often(tmp_path, shuffle):
    root, where = unbalanced(tmp_path)
    uniform = StampLoader(root, batch_size=10, where=where)
    rows = len(real_index(uniform))
    loader = StampLoader(root, batch_size=10, where=where, sampling="balanced", shuffle=shuffle)
    for _ in range(3):
        batches = list(loader)
        labels = torch.cat([b.labels[b.weight > 0] for b in batches])
        assert len(labels) == rows
        assert abs(int((labels == 1).sum()) - rows / 2) <= 1
        counts = np.unique(
            [i for i in real_index(batches) if i % 2], return_counts=True
        )[1]  # fmt: skip
        assert counts.max() - counts.min() <= 1  # every lens as often as the others


def test_balanced_epochs_are_divided_and_resumed_like_any_other(tmp_path):
    root, where = unbalanced(tmp_path)
    options = {"where": where, "sampling": "balanced"}
    whole = [b.index for b in StampLoader(root, "train", 12, 3, **options)]
    parts = [
        [b.index for b in StampLoader(root, "train", 4, 3, rank=rank, world_size=3, **options)]
        for rank in range(3)
    ]
    for step, index in enumerate(whole):
        assert torch.equal(index, torch.cat([part[step] for part in parts]))
    state, rest = rest_after(StampLoader(root, "train", 12, 3, **options), 4)
    resumed = StampLoader(root, "train", 12, 3, **options)
    resumed.load_state_dict(state)
    assert [b.index.tolist() for b in resumed] == [i.tolist() for i in rest]


def test_hard_negatives_come_back_by_their_weight(root):
    labels = StampLoader(root).labels
    logits = np.arange(ROWS, dtype=float)
    weights = hard_negative_weights(labels, logits, fraction=0.1, factor=4.0)
    assert np.flatnonzero(weights > 1).tolist() == [90, 92, 94, 96, 98]
    counts = np.zeros(ROWS)
    loader = StampLoader(root, batch_size=10, weights=weights)
    for _ in range(40):
        np.add.at(counts, real_index(loader), 1)
    assert counts[weights > 1].mean() / counts[weights == 1].mean() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("labels", "logits"), [([0, 1], [0.0]), ([1, 1], [0.0, 1.0]), ([0, 1], [np.nan, 0.0])]
)
def test_hard_negatives_need_scores_of_every_row(labels, logits):
    with pytest.raises(DatasetError):
        hard_negative_weights(labels, logits)
