"""Loader coverage: the real loader passes; loaders with known faults do not."""

from dataclasses import replace

import numpy as np
import pytest

from lenstrain.audit import loader
from lenstrain.audit.config import RunThresholds


def steps(*parts):
    return [(np.array(part), np.ones(len(part), np.float32)) for part in parts]


@pytest.mark.parametrize("read_rows", [1000, 1], ids=["read", "planned"])
def test_the_loader_gives_every_row_once(evidence_of, config, read_rows):
    config = replace(config, run=RunThresholds(read_rows=read_rows, world_sizes=(1, 3)))
    found = loader.check_loader_coverage(evidence_of(rows=150), config)
    assert found.passed
    assert found.measured["how"] == ("read" if read_rows > 1 else "planned")
    assert found.measured["steps"] == {"1": 3, "3": 1}


def test_a_loader_that_ignores_its_rank_is_found(evidence_of, config, monkeypatch):
    """The upstream fault: every worker read all files."""
    monkeypatch.setattr(
        loader, "epoch_steps", lambda uri, rank, size, seed, really: steps(range(120))
    )
    found = loader.check_loader_coverage(evidence_of(), config)
    assert not found.passed
    assert "2 processes: 120 rows come more than once" in found.detail


def test_lost_rows_unequal_steps_and_fillers():
    assert loader.coverage_faults([steps([0, 1]), steps([2, 3])], 4) == []
    assert loader.coverage_faults([steps([0, 1]), steps([2])], 4) == ["1 rows never come"]
    unequal = loader.coverage_faults([steps([0, 1], [2]), steps([3])], 4)
    assert unequal == ["processes take 1 to 2 steps and would wait for ever"]
    assert loader.coverage_faults([steps([0, 1, 2, 9])], 3) == ["1 positions lie outside the split"]
    filler = [(np.array([0, 1, 0]), np.array([1, 1, 0], np.float32))]
    assert loader.coverage_faults([filler], 2) == []
