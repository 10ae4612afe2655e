"""Checks of the scores: what is whole and sound passes; what is not is named."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from lenstrain.audit import scores
from lenstrain.audit.config import ScoreThresholds
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError
from lenstrain.evaluation.metrics import auroc, roc_curve, tpr_at_fpr
from lenstrain.evaluation.scores import read_scores
from tests.lenstrain.audit.conftest import good_logits, make_table, write_scores

ROWS = 600


@pytest.fixture
def scored(evidence_of, tmp_path):
    """Evidence with scores of all rows of test, or with other logits or rows."""

    def make(logits=None, keep=None, **options):
        evidence = evidence_of(rows=ROWS, only=("test",), **options)
        table = evidence.dataset.read_sidecar("test")
        values = good_logits(table) if logits is None else logits(table)
        if keep is not None:
            table, values = table.slice(0, keep), values[:keep]
        evidence.scores = read_scores(write_scores(tmp_path / "s.parquet", table, values))
        evidence.evaluation = report(evidence.scores)
        return evidence

    return make


@pytest.fixture
def evaluated(tmp_path):
    """Evidence with an evaluation alone."""

    def make(**entries):
        evidence = Evidence(tmp_path, None)
        evidence.evaluation = entries
        return evidence

    return make


@pytest.fixture
def supported(tmp_path, config):
    """Evidence whose threshold was chosen on a table with so many distinct non-lenses."""

    def make(images=None, regions=None):
        every = {} if images is None else {
            "pixel_hash": lambda row: [f"{i % images:016x}{0:016x}" for i in row]
        }  # fmt: skip
        every["region_id"] = lambda row: row if regions is None else row % regions
        table = make_table("val", ROWS, **every)
        evidence = Evidence(tmp_path, None)
        evidence.calibration = read_scores(
            write_scores(tmp_path / "val.parquet", table, good_logits(table), split="val")
        )
        return evidence

    return make


def report(table):
    """The part of metrics.json that these checks read, from the scores."""
    curve = roc_curve(table.labels, table.logits)
    points = {fpr: tpr_at_fpr(curve, float(fpr)) for fpr in ("0.1", "0.01", "0.001")}
    return {
        "auroc": {"value": auroc(curve)},
        "tpr_at_fpr": {f: {"value": p.tpr, "fp": p.fp} for f, p in points.items()},
        "completeness_thresholds": [
            {"name": "FPR 0.01", "threshold": float(points["0.01"].threshold)}
        ],
        "n_regions": 200,
        "resamples": 1000,
    }


def test_every_row_scored_passes(scored, config):
    found = scores.check_full_eval(scored(), config)
    assert found.passed
    assert found.measured["eligible"] == ROWS


def test_a_subset_or_foreign_rows_fail(scored, config):
    found = scores.check_full_eval(scored(keep=500), config)
    assert not found.passed
    assert "500 of 600" in found.detail
    evidence = scored()
    evidence.dataset = scored(every={"key": lambda row: [f"f{i:031x}" for i in row]}).dataset
    assert scores.check_full_eval(evidence, config).measured["foreign"] == ROWS


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("label", lambda v: 1 - v),
        ("region_id", lambda v: v + 1),
        ("psfsize_r", lambda v: 1.001 * v),
        ("pixel_hash", lambda v: "0" * 32),
    ],
)
def test_a_changed_column_of_the_scores_fails(scored, config, tmp_path, column, change):
    evidence = scored()
    table = pq.read_table(tmp_path / "s.parquet")
    values = table[column].to_pylist()
    values[:7] = [change(value) for value in values[:7]]
    at, kind = table.column_names.index(column), table.schema.field(column).type
    pq.write_table(table.set_column(at, column, pa.array(values, kind)), tmp_path / "s.parquet")
    evidence.scores = read_scores(tmp_path / "s.parquet")
    found = scores.check_full_eval(evidence, config)
    assert not found.passed
    assert found.measured["altered"] == {column: 7}
    assert f"7 rows have another {column}" in found.detail


def test_rows_in_another_order_are_the_same_rows(scored, config, tmp_path):
    evidence = scored()
    table = pq.read_table(tmp_path / "s.parquet")
    order = np.random.default_rng(0).permutation(ROWS)
    pq.write_table(table.take(pa.array(order)), tmp_path / "s.parquet")
    evidence.scores = read_scores(tmp_path / "s.parquet")
    assert scores.check_full_eval(evidence, config).passed


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"dataset_id": "f" * 64}, "scored on dataset ffffffffffff"),
        ({"normalization": {"mode": "sqrt", "clip": 10.0, "parameters": {}}}, "not the dataset's"),
    ],
)
def test_a_table_of_other_origin_fails(scored, config, metadata, said):
    evidence = scored()
    evidence.checkpoint = {"normalization": {"mode": "mad_stamp"}}
    evidence.scores.metadata.update(
        {"dataset_id": evidence.dataset.dataset_id,
         "normalization": evidence.dataset.manifest.normalization.to_dict()} | metadata
    )  # fmt: skip
    found = scores.check_full_eval(evidence, config)
    assert not found.passed
    assert said in found.detail


def test_distinct_scores_pass(scored, config):
    assert scores.check_score_resolution(scored(), config).passed


def test_saturated_scores_fail(scored, config):
    """A float16 sigmoid: the best candidates share one value."""

    def saturated(table):
        return np.minimum(good_logits(table), 2.0)

    found = scores.check_score_resolution(scored(saturated), config)
    assert not found.passed
    assert found.measured["share"] > 0.05


def test_a_tie_at_the_threshold_fails(scored, config):
    def tied(table):
        logits = good_logits(table)
        logits[np.argsort(logits)[-2:]] = 9.0
        return logits

    evidence = scored(tied)
    evidence.evaluation["completeness_thresholds"] = [{"name": "x", "threshold": 9.0}]
    found = scores.check_score_resolution(
        evidence, replace(config, scores=ScoreThresholds(max_tie_share=0.1))
    )
    assert not found.passed
    assert found.measured["tied_at_threshold"] == {"x": 2}


def test_repeated_images_are_no_tie(scored, config):
    """The same control in twelve selection sets has one score by right."""

    def repeated(table):
        logits = good_logits(table)
        return np.repeat(logits[:2][None], ROWS // 2, axis=0).ravel()

    evidence = scored(
        repeated, every={"pixel_hash": lambda row: [f"{i % 2:016x}{0:016x}" for i in row]}
    )
    assert scores.check_score_resolution(evidence, config).measured["largest_tie"] == 1


def test_a_report_of_these_scores_is_sane(scored, config):
    found = scores.check_roc_sanity(scored(), config)
    assert found.passed, found.detail


def test_upstreams_impossible_auroc_is_found():
    """The published table bounds the AUROC to [0.9455, 0.9753]; 0.9963 was stated beside it."""
    points = [(1e-4, 0.004), (1e-3, 0.352), (1e-2, 0.747), (0.05, 0.85), (0.1, 0.93)]
    (fault,) = scores.roc_faults(points, 0.9963)
    assert "impossible" in fault
    assert scores.roc_faults([(0.0102, 0.747), (0.0179, 0.70)], 0.96) == [
        "true-positive rates fall where false-positive rates rise"
    ]
    assert scores.roc_faults(points, 0.95) == []


def test_a_rate_without_support_has_no_point(scored, config):
    evidence = scored()
    evidence.evaluation["tpr_at_fpr"]["0.001"]["value"] = None
    found = scores.check_roc_sanity(evidence, config)
    assert found.passed
    assert len(found.measured["points"]) == 2
    assert scores.roc_faults([], 0.9) == []


def test_a_report_of_other_scores_is_found(scored, config):
    evidence = scored()
    evidence.evaluation["auroc"]["value"] += 1e-4
    found = scores.check_roc_sanity(evidence, config)
    assert not found.passed
    assert "by mid-ranks" in found.detail


def test_claims_need_distinct_non_lenses_where_the_threshold_was_chosen(supported, config):
    """300 non-lenses, each a region of its own: enough for 1 %, not for 0.1 %."""
    modest = replace(config, scores=ScoreThresholds(claimed_fprs=(0.01,)))
    found = scores.check_fpr_support(supported(), modest)
    assert found.passed
    assert found.measured["split"] == "val"
    found = scores.check_fpr_support(supported(), config)
    assert not found.passed
    assert "needs 2,995" in found.detail
    assert found.measured["zero_fp_upper_limit"] == pytest.approx(1 - 0.05 ** (1 / 300))
    found = scores.check_fpr_support(supported(images=40), modest)
    assert not found.passed
    assert found.measured["unique_negatives"] == 20


def test_non_lenses_that_come_in_regions_count_for_fewer(supported, config):
    modest = replace(config, scores=ScoreThresholds(claimed_fprs=(0.01,)))
    found = scores.check_fpr_support(supported(regions=10), modest)
    assert not found.passed
    assert found.measured["unique_negatives"] == 300
    # At least the ninth degree of freedom of ten regions: (z / t)^2 of 300.
    ratio = stats.norm.isf(0.05) / stats.t.isf(0.05, 9)
    assert found.measured["effective_negatives"]["0.01"] <= 300 * ratio**2 + 1e-6


@pytest.mark.parametrize(("regions", "draws", "passed"), [(200, 1000, True), (13, 1000, False),
                                                          (200, 100, False)])  # fmt: skip
def test_regions_and_draws(evaluated, config, regions, draws, passed):
    evidence = evaluated(n_regions=regions, resamples=draws)
    assert scores.check_region_bootstrap(evidence, config).passed is passed


@pytest.mark.parametrize(
    ("value", "low", "slope", "passed"),
    [(1e-4, -1e-4, 0.8, True), (2e-3, 3.9e-4, 0.8, True), (2e-3, 4.1e-4, 0.8, False),
     (1e-4, -1e-4, -1.0, False)],
)  # fmt: skip
def test_only_a_sure_miscalibration_fails(evaluated, config, value, low, slope, passed):
    evidence = evaluated(
        calibration={"kind": "temperature", "slope": slope},
        calibrated={"ece": {"debiased_squared": {"value": value, "low": low, "high": 1.0}}},
    )
    assert scores.check_calibration(evidence, config).passed is passed


def test_a_calibration_error_without_interval_is_not_run(evaluated, config):
    squared = {"value": 1e-4, "low": None, "high": None}
    evidence = evaluated(calibration={"kind": "temperature", "slope": 1.0},
                         calibrated={"ece": {"debiased_squared": squared}})  # fmt: skip
    with pytest.raises(NotRunError, match="one region"):
        scores.check_calibration(evidence, config)


def test_uncalibrated_scores_are_not_run(evaluated, config):
    evidence = evaluated(calibration=None, calibrated=None)
    with pytest.raises(NotRunError, match="--calibrate-on"):
        scores.check_calibration(evidence, config)


def test_the_area_is_that_of_the_rows_that_the_report_is_of(evidence_of, config, tmp_path):
    """Real rows score at random; the headline is of the simulated ones alone."""
    table = make_table("test", 400, origin=lambda row: [None if i < 200 else "real" for i in row])
    logits = good_logits(table)
    logits[200:] = np.random.default_rng(3).normal(size=200)
    evidence = evidence_of()
    evidence.scores = read_scores(write_scores(tmp_path / "s.parquet", table, logits))
    for rows, headline in ((slice(0, 200), "simulated"), (slice(None), None)):
        label = table["label"].to_numpy()[rows]
        area = auroc(roc_curve(label, evidence.scores.logits[rows]))
        report = {"auroc": {"value": area}, "tpr_at_fpr": {}, "origin": headline}
        evidence.evaluation = report
        assert scores.check_roc_sanity(evidence, config).passed, headline
