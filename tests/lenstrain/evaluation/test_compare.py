"""Differences between two models."""

import numpy as np
import pytest

from lensprep.errors import ScoresError
from lenstrain.evaluation.compare import compare
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from tests.scoretables import make_table

QUICK = EvaluationOptions(resamples=60, fprs=(0.1, 1e-4))


def test_two_models_are_compared_on_the_same_draws(write_scores):
    table = make_table()
    logits = table["logit"].to_numpy()
    better = logits + 1.5 * table["label"].to_numpy()
    one = read_scores(write_scores("one.parquet", logit=better))
    other = read_scores(write_scores("other.parquet"))
    gain = compare(one, other, QUICK)
    assert gain["auroc"]["low"] > 0
    assert gain["tpr_at_fpr"]["0.1"]["value"] > 0
    itself = compare(other, other, QUICK)["auroc"]
    assert (itself["value"], itself["low"], itself["high"]) == (0.0, 0.0, 0.0)
    stranger = read_scores(write_scores("stranger.parquet", seed=4))
    with pytest.raises(ScoresError, match="differ in their keys"):
        compare(one, stranger, QUICK)


def test_the_order_of_rows_does_not_matter_and_both_values_are_stated(write_scores):
    table = make_table()
    one = read_scores(write_scores("one.parquet"))
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    columns = {name: shuffled[name] for name in ("key", "label", "logit", "region_id")}
    other = read_scores(write_scores("other.parquet", **columns))
    gain = compare(one, other, QUICK)
    for entry in (gain["auroc"], gain["partial_auroc"], gain["average_precision"]):
        assert (entry["value"], entry["low"], entry["high"]) == (0.0, 0.0, 0.0)
        assert entry["this"] == entry["other"] > 0.5


def test_a_difference_has_the_t_interval_of_its_draws(write_scores):
    """A gain that every region shares is sure, though each model's own figure is not."""
    table = make_table()
    one = read_scores(
        write_scores("one.parquet", logit=table["logit"].to_numpy() + table["label"].to_numpy())
    )
    other = read_scores(write_scores("other.parquet"))
    options = EvaluationOptions(resamples=400)
    there, back = compare(one, other, options), compare(other, one, options)
    gain = there["auroc"]
    assert gain["value"] == pytest.approx(gain["this"] - gain["other"])
    assert gain["high"] - gain["value"] == pytest.approx(gain["value"] - gain["low"])
    for name in ("value", "low", "high"):
        swapped = {"low": "high", "high": "low"}.get(name, name)
        assert back["auroc"][swapped] == pytest.approx(-gain[name])


def test_rates_without_support_are_not_compared(write_scores):
    one = read_scores(write_scores("one.parquet"))
    rates = compare(one, one, QUICK)["tpr_at_fpr"]
    entry = rates["0.0001"]
    assert (entry["value"], entry["this"], entry["other"]) == (None, None, None)
    assert entry["reason"].startswith("needs 29,956 independent non-lenses")
    assert rates["0.1"]["this"] == rates["0.1"]["other"] > 0


@pytest.mark.parametrize(("column", "word"), [("label", "labels"), ("region_id", "regions")])
def test_other_labels_or_regions_are_refused(write_scores, column, word):
    table = make_table()
    values = table[column].to_numpy().copy()
    values[0] = 1 - values[0] if column == "label" else 9999
    one = read_scores(write_scores("one.parquet"))
    other = read_scores(write_scores("other.parquet", **{column: values}))
    with pytest.raises(ScoresError, match=f"differ in their {word}"):
        compare(one, other, QUICK)
