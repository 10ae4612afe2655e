"""Regions of rows that come without: stable ids, and splits that never change."""

from __future__ import annotations

import numpy as np
import pytest

from lensprep.errors import ConfigError
from lensprep.source.regions import (
    assign_regions,
    check_fractions,
    is_cell_region,
    region_splits,
    sky_cells,
)


def test_cells_and_splits_are_what_they_were_in_every_version():
    ra, dec = [1.0, 180.0, 359.9, 45.0], [2.0, -45.0, 89.0, 0.0]
    assert assign_regions(ra, dec).tolist() == [-4866, -10915, -4096, -1]
    assert region_splits([0, 1, 2, 3, -4866, -1]).tolist() == [
        "test",
        "val",
        "train",
        "train",
        "train",
        "train",
    ]


def test_a_position_that_is_not_known_has_no_cell():
    assert sky_cells([np.nan, 1.0], [0.0, 2.0]).tolist() == [-1, 4865]


def test_the_splits_have_the_shares_that_were_asked_for():
    splits = region_splits(np.arange(20_000), (0.5, 0.3, 0.2))
    shares = [float(np.mean(splits == name)) for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, (0.5, 0.3, 0.2), atol=0.015)
    assert set(region_splits(np.arange(100), (0.0, 1.0, 0.0))) == {"val"}


def test_the_split_of_a_region_does_not_depend_on_the_others():
    every = region_splits(np.arange(-50, 50))
    assert region_splits([17]).tolist() == [every[67]]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.3, -0.1), (0.5, 0.3, 0.1), (1, np.nan, 0)])
def test_shares_that_make_no_sense_are_refused(shares):
    with pytest.raises(ConfigError, match="three shares that add up to 1"):
        check_fractions(shares)


def test_the_ids_of_cells_are_for_rows_in_them():
    cells = np.array([7, 7, 7, 7])
    regions = np.array([5, -8, -9, -100_000])
    assert is_cell_region(regions, cells).tolist() == [True, True, False, True]
