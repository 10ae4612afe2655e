"""What `lensprep check` and `lenstrain audit` share: findings as JSON, and their arithmetic."""

import subprocess
import sys

import numpy as np
import pytest

from lensprep.checks.finding import (
    Finding,
    auroc_error,
    farthest_share,
    in_several,
    leaking,
    mid_rank_auroc,
    positions_in_both,
    separations,
)

SEEN = {"severity": "warn", "passed": True, "measured": 1, "threshold": 2, "detail": "Fine."}


def test_a_finding_is_written_with_the_keys_of_its_command():
    keys = ["item", "severity", "passed", "measured", "threshold", "detail"]
    assert list(Finding(item="a", **SEEN).to_dict()) == keys
    assert Finding(item="a", **SEEN).to_dict() == {"item": "a", **SEEN}
    audited = Finding(item="a", group="data", **SEEN).to_dict()
    assert list(audited) == ["item", "group", *keys[1:]]


@pytest.mark.parametrize(
    ("groups", "shared"),
    [
        ([], []),
        ([[1, 1, 2]], []),
        ([[1, 1, 2], [2, 3], [3, 3]], [2, 3]),
        ([["b", "a"], [], ["a"]], ["a"]),
    ],
)
def test_values_of_several_groups_are_found_once_each(groups, shared):
    assert in_several(groups).tolist() == shared


@pytest.mark.parametrize(("one", "both"), [([[1, 2], [3, 4]], 1), ([[2, 1]], 0), ([], 0)])
def test_positions_of_both_classes_are_counted(one, both):
    assert positions_in_both(np.reshape(one, (-1, 2)), np.array([[1.0, 2.0], [5.0, 6.0]])) == both


def test_splits_are_compared_each_with_each_and_empty_ones_with_none():
    sky = {"train": [[0.0, 0.0], [9.0, 0.0]], "val": [[0.0, 0.005]], "test": [[9.0, 1.0]], "x": []}
    positions = {name: np.reshape(np.array(rows, float), (-1, 2)) for name, rows in sky.items()}
    nearest, close = separations(positions, limit=20.0)
    assert list(nearest) == ["train-val", "train-test", "val-test"]
    assert nearest["train-val"] == pytest.approx(18.0)
    assert nearest["train-test"] == pytest.approx(3600.0)
    assert close == 1


def test_shares_are_compared_with_those_that_are_declared():
    assert farthest_share({"train": 0.7, "val": 0.3}, {"train": 0.8, "test": 0.25}) == 0.25


def test_columns_that_tell_the_label_are_known():
    assert leaking(["ra", "theta_e_arcsec", "is_control"]) == ["theta_e_arcsec", "is_control"]


def test_mid_ranks_count_ties_half():
    score = np.array([0.9, 0.8, 0.7, 0.4, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1])
    lens = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    assert mid_rank_auroc(score, lens) == pytest.approx(20 / 24)
    assert mid_rank_auroc(score[lens], lens[lens]) == 0.5


def test_the_scatter_of_luck_is_that_of_drawn_labels():
    rng = np.random.default_rng(0)
    lens = np.arange(60) < 20
    areas = [mid_rank_auroc(rng.random(60), lens) for _ in range(4000)]
    assert np.std(areas) == pytest.approx(auroc_error(20, 40), rel=0.05)
    assert auroc_error(3, 2) == pytest.approx((6 / 72) ** 0.5)
    assert auroc_error(0, 40) == np.inf


def test_reading_what_a_finding_is_needs_no_decoder():
    heavy = {"numba", "astropy", "scipy", "torch"}
    code = f"import sys, lensprep.checks.finding; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
