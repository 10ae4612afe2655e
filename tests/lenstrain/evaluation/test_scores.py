"""Shares of the rows of a table of scores, counted by region and by image."""

import numpy as np
import pyarrow as pa

from lenstrain.evaluation.scores import read_scores


def test_shares_above_thresholds_are_counted_row_by_row(write_scores):
    rng = np.random.default_rng(0)
    read = read_scores(write_scores(rows=600, regions=13, logit=np.round(rng.normal(size=600), 1)))
    thresholds = np.array([0.3, -np.inf, 1.0, 0.3, np.inf, -0.25, read.logits.max()])
    for label in (0, 1):
        found = read.shares_above(label, thresholds)
        for index, cut in enumerate(thresholds):
            flagged = (read.logits > cut) & (read.labels == label)
            hits = np.bincount(read.region[flagged], minlength=13)
            rows = np.bincount(read.region[read.labels == label], minlength=13)
            assert found.hits[index].tolist() == hits.tolist()
            assert found.rows[index].tolist() == rows.tolist()
            alone = read.shares(label, np.ones(600, bool), read.logits > cut)
            assert found.at(index).entry(0.95) == alone.entry(0.95)


def test_repeats_count_images_among_the_rows_that_are_asked_for(write_scores):
    hashes = pa.array(["a"] * 5 + ["b"] * 3 + [None] * 2 + [f"{i}" for i in range(50)])
    read = read_scores(write_scores(rows=60, pixel_hash=hashes))
    among = np.arange(60) < 12
    assert read.multiplicity(among).tolist() == [5] * 5 + [3] * 3 + [1] * 4
    assert read.repeats(among) == 25 + 9 + 4
    assert read.repeats(~among) == 48
    some = np.isin(np.arange(60), [0, 1, 5, 20])
    assert read.repeats(some) == 4 + 1 + 1
    assert read.shares(0, some, some).repeats == read.repeats(some & (read.labels == 0))
    plain = read_scores(write_scores(rows=60))
    assert plain.repeats(among) == 12
