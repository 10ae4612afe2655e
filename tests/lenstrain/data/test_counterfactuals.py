"""Counterfactuals come besides the ordinary rows of an epoch, as many as are asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lensprep.dataset import Dataset
from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK
from lensprep.errors import ConfigError
from lenstrain.data import StampLoader
from lenstrain.data.order import order_key
from tests.datasets import put_folder, tiny_dataset
from tests.familydatasets import family_dataset
from tests.lenstrain.data.epochs import ROWS, assert_true_to, real_index, rest_after

FAMILIES = 20
MADE = 3 * FAMILIES


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return family_dataset(tmp_path_factory.mktemp("data"), ROWS, FAMILIES, shard_rows=17)


@pytest.fixture(scope="module")
def made(families):
    """Which rows are counterfactuals, in the order of the split."""
    kinds = Dataset.open(families).read_sidecar("train", [COUNTERFACTUAL])[COUNTERFACTUAL]
    return np.array([kind is not None for kind in kinds.to_pylist()])


def counted(batches, rows=ROWS + MADE):
    return np.bincount(real_index(batches), minlength=rows)


def test_by_default_every_row_comes_once(families):
    loader = StampLoader(families, batch_size=7)
    assert loader.selection.digest == ""
    assert (counted(loader) == 1).all()


@pytest.mark.parametrize("shuffle", ["global", "block", None])
def test_a_share_of_0_leaves_them_out(families, made, shuffle):
    loader = StampLoader(families, batch_size=7, shuffle=shuffle, counterfactual_share=0)
    for _ in range(2):
        np.testing.assert_array_equal(counted(loader), ~made)


@pytest.mark.parametrize("shuffle", ["global", "block", None])
@pytest.mark.parametrize(("share", "rows"), [(0.25, 33), (0.5, 100), (0.6, 150), (0.001, 1)])
def test_they_make_up_their_share_and_ordinary_rows_come_once(families, made, shuffle, share, rows):
    loader = StampLoader(families, batch_size=7, shuffle=shuffle, counterfactual_share=share)
    assert loader.spec.rows == ROWS + rows
    stored = Dataset.open(families)
    labels = stored.read_sidecar("train", ["label"])["label"].to_numpy()
    pixels = stored.read_pixels("train", np.arange(ROWS + MADE))
    sums = np.zeros(MADE)
    for _ in range(4):
        batches = list(loader)
        for batch in batches:
            assert_true_to(batch, (pixels, labels))
        counts = counted(batches)
        assert (counts[~made] == 1).all()
        assert counts[made].sum() == rows
        assert set(counts[made]) <= {rows // MADE, -(-rows // MADE)}
        sums += counts[made]
    assert sums.max() > sums.min() or rows % MADE == 0  # other rows come once more each time


def test_over_many_epochs_all_come_equally_often(families, made):
    loader = StampLoader(families, counterfactual_share=0.25)
    sums = sum(np.bincount(loader.selection.epoch(order_key(loader.spec, epoch)),
                           minlength=ROWS + MADE) for epoch in range(600))  # fmt: skip
    expected = 600 * 33 / MADE
    assert np.abs(sums[made] - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 30},
        {"sampling": "balanced", "where": "label == 0 or region_id < 100007"},
        {"weights": np.arange(ROWS + MADE) % 3},
        {"where": "psfsize_r < 1.2", "limit": 20, "sampling": "balanced"},
    ],
    ids=lambda options: "-".join(options),
)
def test_limit_balance_and_weights_are_about_ordinary_rows(families, made, options):
    without = StampLoader(families, batch_size=7, counterfactual_share=0, **options)
    loader = StampLoader(families, batch_size=7, counterfactual_share=0.5, **options)
    rows = len(real_index(without))
    batches = list(loader)
    counts = counted(batches)
    assert counts[~made].sum() == counts[made].sum() == rows
    chosen = without.selection
    assert not made[chosen.rows].any()
    np.testing.assert_array_equal(loader.selection.rows, chosen.rows)
    if chosen.rates is None:
        np.testing.assert_array_equal(counts[~made], counted(without)[~made])
    else:
        np.testing.assert_allclose(loader.selection.rates, chosen.rates)
    if options.get("sampling"):
        seen = [b.labels[(b.weight > 0) & ~torch.from_numpy(made)[b.index]] for b in batches]
        assert abs(2 * int(torch.cat(seen).sum()) - rows) <= 1


def test_a_filter_holds_for_them_too(families, made):
    where = "counterfactual is null or counterfactual != 'magnified'"
    kinds = Dataset.open(families).read_sidecar("train", [COUNTERFACTUAL])[COUNTERFACTUAL]
    loader = StampLoader(families, where=where, counterfactual_share=0.5, batch_size=10)
    counts = Counter()
    for row in real_index(loader):
        counts[kinds[row].as_py()] += 1
    assert counts[None] == ROWS
    assert set(counts) == {None, "lensed", "unlensed"}
    assert sum(counts.values()) == 2 * ROWS


def test_the_same_light_without_its_lens_is_left_out_with_the_lens(families):
    names = [COUNTERFACTUAL, HOST_TASK, DONOR_TASK, "theta_e_arcsec", "task_id"]
    table = Dataset.open(families).read_sidecar("train", names).to_pylist()
    theta = {row["task_id"]: row["theta_e_arcsec"] for row in table}
    where = "label == 0 or theta_e_arcsec >= 1"
    rows = StampLoader(families, where=where, counterfactual_share=0.5).selection.added
    expected = [
        row for row, of in enumerate(table)
        if of[COUNTERFACTUAL] is not None and theta[of[DONOR_TASK]] >= 1
    ]  # fmt: skip
    assert rows.tolist() == expected
    assert 0 < len(expected) < MADE


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_ranks_share_an_epoch_and_it_is_resumed_at_any_step(families, shuffle):
    options = {"shuffle": shuffle, "counterfactual_share": 0.4}
    whole = [b.index for b in StampLoader(families, "train", 12, 3, **options)]
    parts = [
        [b.index for b in StampLoader(families, "train", 4, 3, rank=r, world_size=3, **options)]
        for r in range(3)
    ]
    for step, index in enumerate(whole):
        assert torch.equal(index, torch.cat([part[step] for part in parts]))
    state, rest = rest_after(StampLoader(families, "train", 12, 3, **options), 4)
    resumed = StampLoader(families, "train", 12, 3, **options)
    resumed.load_state_dict(state)
    assert [b.index.tolist() for b in resumed] == [i.tolist() for i in rest]


def test_every_share_is_another_selection(families):
    digests = {
        StampLoader(families, counterfactual_share=share).selection.digest
        for share in (None, 0, 0.25, 0.5)
    }
    assert len(digests) == 4


@pytest.mark.parametrize("options", [{}, {"where": "label == 1"}, {"sampling": "balanced"}])
def test_a_dataset_without_them_is_read_as_ever(root, options):
    today, now = StampLoader(root, **options), StampLoader(root, counterfactual_share=0, **options)
    assert now.state_dict() == today.state_dict()
    assert [b.index.tolist() for b in now] == [b.index.tolist() for b in today]


def test_the_digest_of_a_selection_is_that_of_earlier_versions(root):
    loader = StampLoader(root, where="label == 1", limit=5, counterfactual_share=0)
    assert loader.selection.digest == "fa44ced5c6fba59b"


@pytest.mark.parametrize("shuffle", ["global", "block"])
@pytest.mark.parametrize("cached", [True, False])
def test_from_an_object_store_come_the_same_batches(families, s3, tmp_path, shuffle, cached):
    put_folder(s3.store(), families)
    options = {"batch_size": 10, "shuffle": shuffle, "counterfactual_share": 0.5}
    cache = {"cache_dir": tmp_path / "cache"} if cached else {}
    with_store = StampLoader(s3.uri, s3=s3.options(), **options, **cache)
    try:
        for ours, theirs in zip(StampLoader(families, **options), with_store, strict=True):
            assert torch.equal(ours.index, theirs.index)
            assert torch.equal(ours.pixels, theirs.pixels)
    finally:
        with_store.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counterfactual_share": 1.0}, r"must lie in \[0, 1\), got 1"),
        ({"counterfactual_share": -0.1}, r"must lie in \[0, 1\), got -0.1"),
        (
            {"counterfactual_share": 0.3, "where": "counterfactual is null"},
            "keeps none of the 60 counterfactuals of split 'train'",
        ),
        ({"counterfactual_share": 0.3, "where": "counterfactual == 'lensed'"}, "keeps no row of"),
    ],
)
def test_a_share_that_does_not_fit_is_refused(families, options, message):
    with pytest.raises(ConfigError, match=message):
        StampLoader(families, **options)


@pytest.mark.filterwarnings("ignore:.*is a shard of the dataset")
@pytest.mark.parametrize("tars", [False, True])
def test_a_share_of_what_is_not_there_is_refused(tmp_path, tars):
    root = tiny_dataset(tmp_path, 40)
    place = f"{root}/train/train-000000.tar" if tars else root
    with pytest.raises(ConfigError, match=r"has no counterfactuals\. Make them with"):
        StampLoader(place, counterfactual_share=0.3)
