"""Every figure again from the scores: an honest report passes, any changed number is named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lenstrain.audit import figures
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.audit.finding import NotRunError
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from lenstrain.pages.evaluate import evaluate
from tests.lenstrain.audit.conftest import good_logits, make_table, write_scores


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Scores of val and test, and the report on them."""
    folder = tmp_path_factory.mktemp("honest")
    for number, split in enumerate(("val", "test")):
        table = make_table(split, 900)
        table = table.append_column("arc_snr", pa.array(np.linspace(1, 60, 900)))
        write_scores(folder / f"{split}.parquet", table, good_logits(table, number), split=split)
    evaluate(folder / "test.parquet", folder / "report", calibrate_on=folder / "val.parquet",
             options=EvaluationOptions(
                 resamples=50, examples=0, fprs=(0.1, 0.01), completeness_axes=(
                     ("arc_snr",), ("theta_e_arcsec", "arc_snr"),
                     ("theta_e_arcsec", "psfsize_r", "arc_snr"))))  # fmt: skip
    return folder


@pytest.fixture
def evidence(honest, tmp_path):
    """A copy of the report, whose metrics.json and cells a test may change."""

    def make(change=None, cells=None, **supplied):
        folder = tmp_path / "report"
        shutil.copytree(honest / "report", folder)
        path = folder / "metrics.json"
        content = json.loads(path.read_text())
        content["provenance"]["scores_metadata"] = {}
        if change is not None:
            change(content)
        path.write_text(json.dumps(content))
        if cells is not None:
            pq.write_table(cells(pq.read_table(folder / "completeness.parquet")),
                           folder / "completeness.parquet")  # fmt: skip
        found = Evidence(tmp_path / "run", None, Supplied(evaluation=folder, **supplied))
        found.scores = read_scores(honest / "test.parquet")
        return found

    return make


def test_an_honest_report_passes(evidence, config):
    found = figures.check_report_figures(evidence(), config)
    assert found.passed, found.detail
    assert found.measured["compared"] > 300


def put(*path, value):
    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = value(content[path[-1]])

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("tpr_at_fpr", "0.1", "value", value=lambda v: v + 0.15), "tpr_at_fpr.0.1.value"),
        (put("auroc", "low", value=lambda v: v + 1e-5), "auroc.low"),
        (put("thresholds", 0, "threshold", value=lambda v: v + 0.1), "thresholds[0].threshold"),
        (put("thresholds", 0, "purity", "0.001", "at_least", value=lambda v: 0.9), "at_least"),
        (put("thresholds", 0, "guaranteed", value=lambda v: not v), "thresholds[0].guaranteed"),
        (put("n_negative_unique", value=lambda v: 10 * v), "n_negative_unique"),
        (put("calibrated", "ece", "debiased", value=lambda v: 0.0), "calibrated.ece.debiased"),
        (lambda content: content.pop("brier"), "brier.value is missing"),
        (lambda content: content.update(tpr_at_best=1.0), "tpr_at_best"),
    ],
)
def test_a_changed_number_is_named(evidence, config, change, said):
    found = figures.check_report_figures(evidence(change), config)
    assert not found.passed
    assert said in found.detail


@pytest.mark.parametrize("column", ["completeness", "n", "lo95"])
def test_changed_cells_are_found(evidence, config, column):
    def cells(table):
        at, kind = table.column_names.index(column), table.schema.field(column).type
        return table.set_column(at, column, pa.array(np.ones(table.num_rows), kind))

    found = figures.check_report_figures(evidence(cells=cells), config)
    assert not found.passed
    assert f"{column} of" in found.detail


def test_cells_left_out_are_found(evidence, config):
    found = figures.check_report_figures(evidence(cells=lambda table: table.slice(1)), config)
    assert "other cells" in found.detail


def test_a_report_of_another_table_fails(evidence, honest, config):
    made = evidence()
    made.scores = read_scores(honest / "val.parquet")
    found = figures.check_report_figures(made, config)
    assert not found.passed
    assert "another table" in found.detail


def test_a_calibration_table_that_is_gone_can_be_named(evidence, honest, config, tmp_path):
    def moved(content):
        content["provenance"]["calibrate_on"] = "elsewhere/val.parquet"

    made = evidence(moved)
    with pytest.raises(NotRunError, match="--calibration-scores"):
        figures.check_report_figures(made, config)
    for name, passed in (("val", True), ("test", None)):
        supplied = Supplied(
            evaluation=tmp_path / "report", calibration_scores=honest / f"{name}.parquet"
        )
        again = Evidence(made.run, None, supplied)
        again.scores = made.scores
        if passed:
            assert figures.check_report_figures(again, config).passed
        else:
            with pytest.raises(NotRunError, match="is not the table"):
                figures.check_report_figures(again, config)


def test_options_of_another_version_are_not_run(evidence, config):
    made = evidence(put("provenance", "options", value=lambda o: o | {"colour": 1}))
    with pytest.raises(NotRunError, match="colour"):
        figures.check_report_figures(made, config)


def test_rounding_is_no_difference():
    told, again = {"a": [1.0, None, True]}, {"a": [1.0 + 1e-10, None, True]}
    assert figures.differing_leaves(told, again) == []
    assert figures.differing_leaves({"a": None}, {"a": 0.5}) == ["a is None, not 0.5"]
