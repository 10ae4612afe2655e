"""Leak probes: they pass clean data, and find what was planted."""

import numpy as np
import pyarrow as pa
import pytest

from lenstrain.audit import leaks
from lenstrain.audit.finding import NotRunError
from lenstrain.evaluation.linear import shuffled_areas

ROWS = 600


def leaking(strength, seed=1):
    """Seeing that differs between the classes by a share of its scatter."""

    def values(row):
        noise = np.random.default_rng(seed).normal(0, 0.1, len(row))
        return 1.2 + noise + 0.1 * strength * (row % 2)

    return values


def test_clean_metadata_pass(evidence_of, config):
    found = leaks.check_metadata_probe(evidence_of(rows=ROWS), config)
    assert found.passed
    assert set(found.measured["columns"]) == {"psfsize_r", "psfdepth_r", "ebv", "selection_set_id"}


@pytest.mark.parametrize(("strength", "severity"), [(1.5, "blocker"), (0.25, "warn")])
def test_leaking_metadata_block_or_warn(evidence_of, config, strength, severity):
    every = {"psfsize_r": leaking(strength)}
    found = leaks.check_metadata_probe(evidence_of(rows=ROWS, every=every), config)
    assert not found.passed
    assert found.severity == severity
    assert next(iter(found.measured["alone"])) == "psfsize_r"


def test_a_telling_text_or_null_is_found(evidence_of, config):
    def sets(row):
        return np.where((row % 2 == 1) & (row % 3 == 0), "only_lenses", "set1").tolist()

    found = leaks.check_metadata_probe(
        evidence_of(rows=ROWS, every={"selection_set_id": sets}), config
    )
    assert found.severity == "blocker"

    def nulls(row):
        return pa.array(np.where((row % 2 == 1) & (row % 3 == 0), np.nan, 0.05), from_pandas=True)

    found = leaks.check_metadata_probe(evidence_of(rows=ROWS, every={"ebv": nulls}), config)
    assert found.severity == "blocker"
    assert "ebv" in found.measured["alone"]


def test_injection_columns_are_no_metadata(evidence_of, config):
    every = {"arc_snr": lambda row: np.where(row % 2, 30.0, 0.0)}
    found = leaks.check_metadata_probe(evidence_of(rows=ROWS, every=every), config)
    assert found.passed
    assert "arc_snr" not in found.measured["columns"]


@pytest.mark.parametrize(("strength", "passed"), [(0.0, True), (0.6, False)])
def test_seeing_and_depth(evidence_of, config, strength, passed):
    every = {"psfsize_r": leaking(strength)}
    found = leaks.check_psf_depth(evidence_of(rows=ROWS, every=every), config)
    assert found.passed is passed
    assert (found.measured["shuffled_highest"] is None) is passed


def test_luck_of_a_small_sample_is_told_by_shuffles(config):
    """Many features and few rows: an interval above 0.5 is not rare, the highest of 40 is."""
    rng = np.random.default_rng(5)
    labels = np.tile([0, 1], 60)
    regions = np.repeat(np.arange(6), 20)
    features = rng.normal(size=(120, 12)) + rng.normal(size=(6, 12))[regions]
    areas = list(shuffled_areas(features, labels, regions, leaks.SHUFFLES, 0))
    assert len(areas) == leaks.SHUFFLES
    assert 0.4 < np.mean(areas) < 0.55
    found = {"value": np.sort(areas)[-2], "low": 0.51, "shuffled_highest": max(areas)}
    assert not leaks.surely_above(found, 0.5)
    assert leaks.surely_above(found | {"value": max(areas) + 0.01}, 0.5)


def test_a_leak_between_regions_is_one_too(evidence_of, config):
    """Regions in bad seeing have few lenses; within a region seeing tells nothing."""

    def labels(row):
        bad = (row // 30) % 2 == 0
        return pa.array((row % 30 < np.where(bad, 8, 22)).astype(np.int8))

    every = {
        "label": labels,
        "region_id": lambda row: pa.array(row // 30, pa.int32()),
        "psfsize_r": lambda row: 1.2 + 0.1 * ((row // 30) % 2 == 0),
    }
    found = leaks.check_psf_depth(evidence_of(rows=ROWS, only=("train",), every=every), config)
    assert not found.passed
    assert found.measured["value"] > 0.7


def test_one_region_is_a_reason_not_to_run(evidence_of, config):
    every = {"region_id": lambda row: pa.array(np.zeros(len(row)), pa.int32())}
    with pytest.raises(NotRunError, match="two regions"):
        leaks.check_metadata_probe(evidence_of(every=every), config)
