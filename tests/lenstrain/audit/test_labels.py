"""Labels judged by the scores: right labels pass, swapped and shuffled ones are found."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from lenstrain.audit import labels
from lenstrain.audit.evidence import Evidence
from lenstrain.evaluation.scores import read_scores
from tests.lenstrain.audit.conftest import good_logits, make_table, write_scores

ROWS = 2400


@pytest.fixture
def evidence(tmp_path):
    def make(strength=4.0, change=None, snr=True):
        """`change` makes the order in which rows take the labels of others."""
        table = make_table("test", ROWS)
        logits = good_logits(table, strength=strength)
        rng = np.random.default_rng(7)
        arc = np.where(table["label"].to_numpy() == 1, rng.uniform(5, 60, ROWS), np.nan)
        if snr:
            table = table.append_column("arc_snr", pa.array(arc, from_pandas=True))
        if change is not None:
            order = change(table["label"].to_numpy(), rng)
            for name in ("label", "arc_snr"):
                at = table.column_names.index(name)
                table = table.set_column(at, name, table[name].take(pa.array(order)))
        found = Evidence(tmp_path, None)
        found.scores = read_scores(write_scores(tmp_path / "s.parquet", table, logits))
        return found

    return make


def swap(share):
    def change(label, rng):
        order = np.arange(len(label))
        n = int(share * len(label) / 2)
        one, two = (rng.choice(np.flatnonzero(label == k), n, replace=False) for k in (1, 0))
        order[one], order[two] = two, one
        return order

    return change


@pytest.mark.parametrize("strength", [0.7, 1.5, 3.0, 6.0])
def test_right_labels_pass_however_good_the_finder(evidence, config, strength):
    found = labels.check_label_noise(evidence(strength), config)
    assert found.passed, found.detail


@pytest.mark.parametrize("strength", [3.0, 6.0])
def test_a_tenth_of_swapped_labels_warns(evidence, config, strength):
    made = evidence(strength, swap(0.1))
    found = labels.check_label_noise(made, config)
    assert not found.passed
    assert found.severity == "warn"
    assert found.measured["top_ratio"]["value"] == pytest.approx(0.1, abs=0.05)
    assert found.measured["bright_missed"]["value"] == pytest.approx(0.05, abs=0.03)


def test_the_worst_are_named(evidence, config):
    made = evidence(6.0, swap(0.1))
    worst = labels.check_label_noise(made, config).measured["worst"]
    by_key = dict(zip(made.scores.table["key"].to_pylist(), made.scores.logits, strict=True))
    assert all(by_key[key] > 2 for key in worst["non_lenses"])
    assert all(by_key[key] < -2 for key in worst["bright_lenses"])
    assert len(worst["non_lenses"]) == len(worst["bright_lenses"]) == 3


def test_swapped_labels_are_found_without_arcs(evidence, config):
    made = evidence(6.0, swap(0.1))
    made.scores = read_scores(made.scores.path)
    object.__setattr__(made.scores, "table", made.scores.table.drop_columns(["arc_snr"]))
    found = labels.check_label_noise(made, config)
    assert not found.passed
    assert found.measured["bright_missed"]["n"] == 0


def test_shuffled_labels_block(evidence, config):
    found = labels.check_label_noise(evidence(6.0, swap(1.0)), config)
    assert found.measured["auroc"]["value"] < 0.1
    found = labels.check_label_noise(
        evidence(6.0, lambda label, rng: rng.permutation(len(label))), config
    )
    assert not found.passed
    assert found.severity == "blocker"
    assert "no better than chance" in found.detail


def test_expected_ratio_of_normal_populations():
    """For d' = 2: the score that 10 % of the lenses reach lies 3.28 above the non-lenses' mean."""
    area = stats.norm.cdf(2 / np.sqrt(2))
    assert labels.expected_ratio(area) == pytest.approx(stats.norm.sf(2 + 1.2815516) / 0.1)
    assert labels.expected_ratio(0.5) == pytest.approx(1.0)
