"""Options check themselves."""

import pytest

from lensprep.configfile import load_config
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
        ({"interval": "bayes"}, "interval must be one of"),
        ({"level": 0.5}, "level must lie between 0.5 and 1, got 0.5"),
        ({"delta": 0.5}, "delta must lie between 0 and 0.5, got 0.5"),
        ({"prevalence_dex": -0.1}, "prevalence_dex must not be negative"),
        ({"axis_edges": {"redshift": (0, 1)}}, "unknown axis 'redshift' in axis_edges"),
        ({"axis_edges": {"arc_snr": (3, 1)}}, r"two or more ascending numbers, got .3\.0, 1\.0."),
        ({"axis_edges": {"arc_snr": ("a", "b")}}, r"axis_edges.arc_snr\[0\] must be of type float"),
        ({"axis_edges": {"arc_snr": 3}}, r"axis_edges\.arc_snr must be a list, got 3"),
        ({"match_radius_arcsec": 0}, "match_radius_arcsec must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationOptions(**change)


def test_edges_come_from_the_command_line():
    options = load_config(EvaluationOptions, None, ["axis_edges.psfsize_r=[0.8, 1.2, 1.6]"])
    assert list(options.axis_edges["psfsize_r"]) == [0.8, 1.2, 1.6]
