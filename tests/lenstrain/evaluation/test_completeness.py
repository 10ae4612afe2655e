"""Completeness cells: what is counted where, and that nothing is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lenstrain.evaluation.clustered import Shares
from lenstrain.evaluation.completeness import AxisBins, Lenses, axis_bins, count_cells


def test_an_axis_of_few_values_has_a_bin_for_each():
    bins = axis_bins("theta_e_arcsec", np.array([1.0, 0.3, 0.6, 0.3, np.nan]), 4)
    assert bins.edges == pytest.approx([0.15, 0.45, 0.8, 1.2])
    assert [bins.label(i) for i in range(bins.size)] == ["0.3", "0.6", "1.0"]
    assert bins.assign(np.array([0.3, 0.6, 1.0, np.nan, 5.0, 0.0])).tolist() == [
        0,
        1,
        2,
        -1,
        -1,
        -1,
    ]


def test_a_float32_column_has_the_same_bins_as_a_float64_one():
    values = np.tile([0.3, 0.6, 1.0], 5)
    narrow = axis_bins("theta_e_arcsec", values.astype(np.float32).astype(np.float64), 4)
    assert narrow.edges == pytest.approx(axis_bins("theta_e_arcsec", values, 4).edges)
    assert [narrow.label(i) for i in range(3)] == ["0.3", "0.6", "1.0"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80), st.integers(1, 6))
def test_every_finite_value_lies_in_a_bin(values, n_bins):
    data = np.array(values)
    bins = axis_bins("arc_snr", data, n_bins)
    assigned = bins.assign(data)
    assert assigned.min() >= 0
    assert assigned.max() < bins.size


def test_quantile_bins_hold_equal_counts():
    values = np.random.default_rng(0).normal(size=1000)
    bins = axis_bins("psfsize_r", values, 4)
    assert np.bincount(bins.assign(values)).tolist() == [250] * 4


def test_an_axis_without_values_has_no_bins():
    assert axis_bins("arc_snr", np.array([np.nan, np.nan]), 4) is None


def lenses(recovered, region=None, unresolved=None, known=None, copies=1, correlation=0.0):
    """Lenses at one threshold, by default in regions of their own, each image `copies` times."""
    n = recovered.size
    return Lenses(
        recovered,
        np.arange(n) // copies if region is None else region,
        np.full(n, copies, np.int64),
        correlation,
        np.zeros(n, bool) if unresolved is None else unresolved,
        np.ones(n, bool) if known is None else known,
    )


def test_three_axes_count_like_a_loop():
    rng = np.random.default_rng(1)
    axes = [
        AxisBins("theta_e_arcsec", np.array([0.0, 0.5, 1.0])),
        AxisBins("psfsize_r", np.array([1.0, 1.2, 1.4, 1.6])),
        AxisBins("src_dmag", np.array([0.5, 1.5, 2.5])),
    ]
    values = [rng.uniform(0, 1, 500), rng.uniform(0.9, 1.7, 500), rng.choice([1.0, 2.0], 500)]
    recovered, unresolved = rng.random(500) < 0.4, rng.random(500) < 0.2
    known = rng.random(500) < 0.8
    unresolved &= known
    region = rng.integers(0, 9, 500)
    cells = count_cells(axes, values, lenses(recovered, region, unresolved, known))
    columns = cells.columns()
    assert columns["n"].size == 12
    for row in range(12):
        inside = np.ones(500, bool)
        for axis, value in zip(axes, values, strict=True):
            low, high = columns[f"{axis.name}_lo"][row], columns[f"{axis.name}_hi"][row]
            inside &= (value >= low) & (value < high)
        assert cells.n[row] == inside.sum()
        assert cells.recovered[row] == (inside & recovered).sum()
        assert cells.unresolved[row] == (inside & unresolved).sum()
        share = (inside & unresolved).sum() / (inside & known).sum()
        assert columns["unresolved_share"][row] == pytest.approx(share)
        assert columns["regions"][row] == np.unique(region[inside]).size
        assert cells.shares.hits[row].tolist() == [
            (inside & recovered & (region == r)).sum() for r in range(9)
        ]
    assert cells.n.sum() + cells.left_out == 500
    assert cells.left_out > 0


def test_cells_have_wilson_intervals_of_68_and_95_percent():
    axis = AxisBins("theta_e_arcsec", np.array([0.0, 1.0, 2.0]))
    recovered = np.arange(10) < 3
    columns = count_cells([axis], [np.full(10, 0.5)], lenses(recovered)).columns()
    for level, name in ((0.682689492137086, "68"), (0.95, "95")):
        theirs = stats.binomtest(3, 10).proportion_ci(level, "wilson")
        assert columns[f"lo{name}"][0] == pytest.approx(theirs.low)
        assert columns[f"hi{name}"][0] == pytest.approx(theirs.high)
        # Every lens in a region of its own: by region they are the same.
        assert columns[f"region_lo{name}"][0] == pytest.approx(theirs.low)
        assert columns[f"region_hi{name}"][0] == pytest.approx(theirs.high)


def test_intervals_by_region_are_those_of_the_shares():
    rng = np.random.default_rng(2)
    axis = AxisBins("theta_e_arcsec", np.array([0.0, 1.0, 2.0, 3.0]))
    values, region = rng.uniform(0, 2, 400), rng.integers(0, 12, 400)
    recovered = rng.random(400) < np.linspace(0.2, 0.9, 12)[region]
    columns = count_cells([axis], [values], lenses(recovered, region, correlation=0.2)).columns()
    for row in range(2):
        inside = (values >= row) & (values < row + 1)
        rows = np.bincount(region[inside], minlength=12).astype(float)
        hits = np.bincount(region[inside & recovered], minlength=12).astype(float)
        share = Shares(hits, rows, np.asarray(rows.sum()), 0.2)
        # Two cells hold lenses: both intervals hold with 95 % if each does with 97.5.
        for name, level in (("region_{}95", 0.95), ("joint_{}95", 0.975)):
            ends = [columns[name.format(end)][row] for end in ("lo", "hi")]
            assert ends == pytest.approx(np.array(share.interval(level)))
        assert columns["region_lo95"][row] < columns["lo95"][row]
    assert columns["regions"].tolist() == [12, 12, 0]
    assert np.isnan([columns["region_lo95"][2], columns["joint_hi95"][2]]).all()


def test_repeated_lenses_count_as_their_images():
    axis = AxisBins("theta_e_arcsec", np.array([0.0, 1.0]))
    once, often = lenses(np.arange(20) < 7), lenses(np.arange(60) < 21, copies=3)
    one, three = (
        count_cells([axis], [np.full(them.region.size, 0.5)], them).columns()
        for them in (once, often)
    )
    assert (one["n"][0], three["n"][0]) == (20, 60)
    for name in ("region_lo95", "region_hi95"):
        assert three[name] == pytest.approx(one[name])


def test_an_empty_cell_says_nothing():
    axis = AxisBins("theta_e_arcsec", np.array([0.0, 1.0, 2.0]))
    columns = count_cells([axis], [np.full(10, 0.5)], lenses(np.ones(10, bool))).columns()
    assert columns["n"][1] == 0
    assert np.isnan(columns["completeness"][1])
    assert (columns["lo95"][1], columns["hi95"][1]) == (0.0, 1.0)


def test_seeing_with_few_bricks_is_still_binned_by_quantile():
    values = np.repeat(np.linspace(1.1, 1.6, 11), 9)
    bins = axis_bins("psfsize_r", values, 4)
    assert bins.size == 4
    assert bins.values is None
    assert axis_bins("src_dmag", values, 4).size == 11
