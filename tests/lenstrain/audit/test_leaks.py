"""Leak probes: they pass clean data, and find what was planted."""

import numpy as np
import pyarrow as pa
import pytest

from lenstrain.audit import leaks
from lenstrain.audit.finding import NotRunError

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


def test_normalisation_statistics(evidence_of, config):
    assert leaks.check_norm_stat_probe(evidence_of(rows=ROWS), config).passed

    def clipped(row):
        return (0.01 + 0.02 * (row % 2) + 0.01 * np.random.default_rng(0).random(len(row))).astype(
            "f4"
        )

    found = leaks.check_norm_stat_probe(
        evidence_of(rows=ROWS, every={"clip_frac_g": clipped}), config
    )
    assert not found.passed
    assert found.measured["clip_gap"]["g"]["cohen_d"] > 3
    assert found.measured["clip_gap"]["g"]["lenses"] == pytest.approx(0.035, abs=0.001)
    assert abs(found.measured["clip_gap"]["r"]["cohen_d"]) < 0.3


def test_one_region_is_a_reason_not_to_run(evidence_of, config):
    every = {"region_id": lambda row: pa.array(np.zeros(len(row)), pa.int32())}
    with pytest.raises(NotRunError, match="two regions"):
        leaks.check_metadata_probe(evidence_of(every=every), config)
