"""Differences between two models."""

import pytest

from lensprep.errors import ScoresError
from lenstrain.evaluation.compare import compare
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores

from .conftest import make_table

QUICK = EvaluationOptions(resamples=60)


def test_two_models_are_compared_on_the_same_draws(write_scores):
    table = make_table()
    logits = table["logit"].to_numpy()
    better = logits + 1.5 * table["label"].to_numpy()
    one = read_scores(write_scores("one.parquet", logit=better))
    other = read_scores(write_scores("other.parquet"))
    gain = compare(one, other, QUICK)
    assert gain["auroc"]["low"] > 0
    assert gain["tpr_at_fpr"]["0.01"]["value"] > 0
    itself = compare(other, other, QUICK)["auroc"]
    assert (itself["value"], itself["low"], itself["high"]) == (0.0, 0.0, 0.0)
    stranger = read_scores(write_scores("stranger.parquet", seed=4))
    with pytest.raises(ScoresError, match="differ in their keys"):
        compare(one, stranger, QUICK)
