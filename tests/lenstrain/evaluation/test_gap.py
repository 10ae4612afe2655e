"""The sim-to-real gap: a linear probe between real and simulated rows, class by class."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ScoresError
from lenstrain.evaluation.gap import FEWEST_ROWS, sim_to_real
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from tests.scoretables import make_mixed

QUICK = EvaluationOptions(resamples=60, level=0.9)
WIDTH = 6


def vectors(table, shift=0.0):
    """Noise, in which real lenses are shifted along one axis."""
    values = np.random.default_rng(0).normal(0, 1, (table.num_rows, WIDTH)).astype(np.float32)
    real = np.array(table["origin"].to_pylist(), object) == "real"
    values[real & (table["label"].to_numpy() == 1), 2] += shift
    return values


def gap(folder, table, values):
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), from_pandas=False), WIDTH)
    pq.write_table(table.append_column("embedding", column), folder / "s.parquet")
    return sim_to_real(read_scores(folder / "s.parquet"), QUICK)


def test_a_known_distance_is_found_in_its_class_alone(tmp_path):
    """Two normal populations 2 widths apart: an AUROC of Phi(2 / sqrt 2) = 0.921."""
    table = make_mixed(real=900)
    found = gap(tmp_path, table, vectors(table, 2.0))
    assert found["lenses"]["value"] == pytest.approx(0.921, abs=0.03)
    assert found["lenses"]["low"] < found["lenses"]["value"] < found["lenses"]["high"]
    assert found["lenses"]["level"] == 0.9
    assert abs(found["non_lenses"]["value"] - 0.5) < 0.06
    assert (found["lenses"]["real"], found["non_lenses"]["real"]) == (300, 600)
    assert found["lenses"]["features"] == WIDTH
    assert not found["lenses"]["least"]


def test_what_cannot_be_run_has_a_reason(tmp_path):
    few = make_mixed(real=60)  # 20 lenses, 40 non-lenses
    found = gap(tmp_path, few, vectors(few))
    assert found["lenses"]["value"] is None
    assert found["lenses"]["reason"] == f"20 real lenses: a probe needs {FEWEST_ROWS} or more"
    assert found["non_lenses"]["value"] is not None
    pq.write_table(make_mixed(), tmp_path / "bare.parquet")
    found = sim_to_real(read_scores(tmp_path / "bare.parquet"), QUICK)
    assert "infer --embeddings" in found["lenses"]["reason"]


def test_features_that_are_not_finite_are_an_error(tmp_path):
    table = make_mixed()
    values = vectors(table)
    values[-1, 0] = np.nan
    with pytest.raises(ScoresError, match="not finite"):
        gap(tmp_path, table, values)
