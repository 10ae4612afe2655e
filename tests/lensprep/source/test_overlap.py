"""Neighbours of catalogues: found whatever the order of rows, near poles and across 0h."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lensprep.errors import InputError
from lensprep.source.overlap import TreeScan, choose_regions, choose_splits, groups, neighbours


def tree_rows(*rows):
    names = ("ra", "dec", "region_id", "region_split")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def scan_of(positions, *rows, diagonal=24.0):
    ra, dec = np.array(positions, float).T
    scan = TreeScan(ra, dec, diagonal)
    hits = [scan.add(tree_rows(*few)) for few in rows]
    return scan, hits


def test_the_nearest_row_counts_and_rows_within_the_diagonal_before_those_in_the_cell():
    far, near = (10.0, 0.10, 1, "train"), (10.0, 0.002, 2, "val")
    for pieces in ([[far], [near]], [[near], [far]], [[far, near]]):
        scan, hits = scan_of([(10.0, 0.0), (10.3, 0.1), (200.0, 0.0)], *pieces)
        assert scan.found.tolist()[:2] == [2, 1]
        assert scan.is_found.tolist() == [True, True, False]
        ((row, _, arcsec),) = [hit for found in hits for hit in found]
        assert (row, arcsec) == (0, pytest.approx(7.2))
    assert scan.regions == {1: {"train"}, 2: {"val"}}


@pytest.mark.parametrize(
    ("own", "other"), [((359.999, 0.0), (0.001, 0.0)), ((10.0, 89.9995), (190.0, 89.9995))]
)
def test_there_is_no_edge_at_0h_or_at_a_pole(own, other):
    _, (hits,) = scan_of([own], [(*other, 1, "train")])
    assert [hit[:2] for hit in hits] == [(0, 0)]


def test_rows_without_region_split_or_position_say_nothing():
    rows = [(10.0, 0.0, None, "train"), (10.0, 0.0, 1, "other"), (None, 0.0, 1, "train")]
    scan, (hits,) = scan_of([(10.0, 0.0)], rows)
    assert not hits
    assert not scan.is_found.any()


def test_friends_of_friends_share_a_region_across_the_edge_of_a_cell():
    dec = 30.0
    # A chain along the declination with steps below the diagonal, and one far away.
    ra = np.array([*(44.9 + np.arange(60) * 0.005), 100.0])
    dec = np.full(61, dec)
    scan = TreeScan(ra, dec, 24.0)
    alone = choose_regions(scan, np.arange(61))
    assert len({*alone.tolist()}) > 2
    together = choose_regions(scan, groups(61, neighbours(ra, dec, 24.0)))
    assert len({*together[:60].tolist()}) == 1
    assert together[60] == alone[60]
    order = np.random.default_rng(0).permutation(61)
    again = TreeScan(ra[order], dec[order], 24.0)
    shuffled = choose_regions(again, groups(61, neighbours(ra[order], dec[order], 24.0)))
    assert shuffled.tolist() == together[order].tolist()


def test_a_split_is_the_rows_own_then_the_regions_then_drawn():
    scan, _ = scan_of([(10.0, 0.0)], [(10.0, 0.0, 4, "test")])
    regions = np.array([4, 5, 5, 6])
    splits, contradictions = choose_splits(regions, [None, None, "val", None], scan, (1, 0, 0))
    assert splits == ["test", "val", "val", "train"]
    assert contradictions == []
    _, contradictions = choose_splits(np.array([4]), ["train"], scan, (1, 0, 0))
    assert contradictions == [(4, {"train", "test"})]


def test_a_tree_that_uses_the_ids_of_cells_for_others_is_noticed():
    scan, _ = scan_of([(10.0, 0.0)], [(50.0, 0.0, -1, "train")])
    assert scan.is_foreign


def test_cutouts_at_one_placeholder_are_refused_before_memory_runs_out():
    with pytest.raises(InputError, match=r"7,998,000 pairs .*a placeholder"):
        neighbours(np.zeros(4000), np.zeros(4000), 24.0)
    assert len(neighbours(np.zeros(40), np.zeros(40), 24.0)) == 40 * 39 // 2
