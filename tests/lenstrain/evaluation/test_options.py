"""Options check themselves."""

import pytest

from lensprep.errors import ConfigError
from lenstrain.evaluation.options import EvaluationOptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fprs": (0.0,)}, "fprs must lie between 0 and 1, got 0.0"),
        ({"fprs": ()}, "fprs must not be empty"),
        ({"completeness_fprs": ()}, "needs completeness_fprs or thresholds"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"completeness_axes": (("redshift",),)}, "unknown completeness axis"),
        ({"completeness_axes": (("arc_snr",) * 4,)}, "one to three axes, got 4"),
        ({"interval": "bayes"}, "percentile or bca"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationOptions(**change)
