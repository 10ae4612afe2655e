"""Another figure of merit is an entry of METRICS: then it is everywhere, known to no other file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from lensprep.configfile import load_config
from lensprep.errors import ConfigError
from lenstrain.config import Config
from lenstrain.evaluation import metrics
from lenstrain.evaluation.draws import SampleDraws
from lenstrain.evaluation.metrics import Metric
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.resampling import make_resampling
from lenstrain.evaluation.scores import read_scores
from lenstrain.monitor.diagnosis import History, since_best
from lenstrain.pages.evaluate import evaluate
from lenstrain.sweep.config import load_plan
from lenstrain.training.stopping import Stopper
from lenstrain.training.validate import validation_metrics
from tests.scoretables import BARE


def largest_gap(sample):
    """Kolmogorov and Smirnov's distance of the two classes."""
    return float(np.max(sample.curve.tp / sample.curve.n_positive
                        - sample.curve.fp / sample.curve.n_negative))  # fmt: skip


@pytest.fixture(params=[True, False], ids=["more is better", "less is better"])
def ks(request, monkeypatch):
    """A metric that has its value alone: no draws of its own, no word anywhere else."""
    metric = Metric(name="ks", title="KS distance", value=largest_gap,
                    higher_is_better=request.param)  # fmt: skip
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, metric))
    return metric


@pytest.fixture
def quick():
    return EvaluationOptions(
        resamples=40, examples=0, fprs=(0.1,), completeness_fprs=(0.1,), prevalence=()
    )


def test_it_is_in_the_report_with_an_interval_and_in_the_comparison(
    ks, quick, write_scores, tmp_path
):
    one, other = write_scores(**BARE), write_scores("other.parquet", **BARE, logit=np.arange(1200))
    evaluate(one, tmp_path / "out", compare_with=other, options=quick)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    scores = read_scores(one)
    truth = ks_2samp(scores.logits[scores.labels == 1], scores.logits[scores.labels == 0]).statistic
    assert found["ks"]["value"] == pytest.approx(truth)
    assert 0 < found["ks"]["low"] < truth < found["ks"]["high"] < 1
    assert found["comparison"]["ks"]["this"] == found["ks"]["value"]
    assert found["comparison"]["ks"]["low"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        page.count('<th scope="row">KS distance</th>') == 2
    )  # among the areas, and in the comparison


def test_it_steers_training_the_monitor_and_a_sweep(ks, tmp_path):
    labels, logits = np.array([0, 1, 0, 1], np.int8), np.array([0, 1, 2, 3], np.float32)
    assert validation_metrics(logits, labels, 0.01)["ks"] == 0.5
    stopper = Stopper(monitor="ks", patience=1)
    course = [dict.fromkeys(metrics.steering(), 0.5) | {"ks": value} for value in (0.5, 0.6)]
    assert "ks" in stopper.update(1, course[0])
    assert ("ks" in stopper.update(2, course[1])) == ks.higher_is_better
    assert stopper.should_stop != ks.higher_is_better
    since = since_best(History(monitor="ks", epochs=course))
    assert since == (0 if ks.higher_is_better else 1)
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('[search]\nobjective = "ks"\n[space]\noptim.lr = [1e-4, 1e-3]\n')
    assert load_plan(sweep).base.train.monitor == "ks"
    assert load_config(Config, None, ("train.monitor=ks",)).train.monitor == "ks"


def test_a_name_that_may_not_steer_is_refused_with_those_that_may():
    for name in ("partial_auroc", "accuracy"):
        with pytest.raises(
            ConfigError, match=f"train.monitor must be one of 'auroc', .*'nll', .*, got '{name}'"
        ):
            metrics.steering_metric(name, "train.monitor")


def draws_of(scores, resamples, options):
    resampling = make_resampling(5, resamples, 0, 0.9)
    return SampleDraws(scores.labels, scores.logits, scores.region, resampling, options)


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda metric: metric.name)
def test_the_value_is_that_of_the_draw_with_every_region_once(metric, write_scores, quick):
    scores = read_scores(write_scores(rows=300, regions=5))
    draws = SampleDraws(
        scores.labels, scores.logits, scores.region, make_resampling(5, 1, 0, 0.9), quick
    )
    sample = metrics.Sample(scores.labels, scores.logits, fpr=quick.fprs[0])
    assert np.ravel(draws.values(metric))[0] == pytest.approx(metric.value(sample), rel=1e-12)


@pytest.mark.parametrize("name", ["auroc", "partial_auroc", "average_precision", "nll", "brier"])
def test_the_fast_draws_are_those_of_each_value(name, write_scores, quick):
    scores = read_scores(write_scores(rows=300, regions=5))
    metric = next(metric for metric in metrics.METRICS if metric.name == name)
    draws = SampleDraws(
        scores.labels, scores.logits, scores.region, make_resampling(5, 20, 0, 0.9), quick
    )
    slow = draws.values(replace(metric, draws=None))
    assert draws.values(metric) == pytest.approx(slow, rel=1e-12)
