"""Rates and thresholds as people read them."""

import pytest

from lenstrain.evaluation.names import rate_text, threshold_text
from lenstrain.evaluation.operating import frozen_thresholds
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from tests.scoretables import BARE


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.01, "1%"), (0.07, "7%"), (1e-5, "0.001%"), (2.5e-9, "0.00000025%"), (1, "100%")],
)
def test_a_rate_is_in_percent_without_an_exponent(rate, text):
    assert rate_text(rate) == text


def test_every_threshold_has_a_name_for_people(write_scores):
    options = EvaluationOptions(
        fprs=(0.1, 1e-5), prevalence=(1e-4,), betas=(0.5,), inspection_budget=1500, population=1e7
    )
    found = frozen_thresholds(read_scores(write_scores(**BARE)), (), options)
    assert [threshold_text(choice.name) for choice in found] == [
        "FPR 10%", "FPR 0.001%", "1,500 false among 10,000,000", "F0.5 at 1 lens in 10,000",
    ]  # fmt: skip
    assert threshold_text("logit 4.5") == "logit 4.5"
