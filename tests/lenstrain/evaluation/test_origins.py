"""Real and simulated rows apart: whose the headline is, and what is said of each."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lensprep.dataset.strictjson import plain
from lensprep.errors import ScoresError
from lenstrain.evaluation.compare import compare_apart
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.origins import APART, UNSTATED, judge_origins
from lenstrain.evaluation.scores import read_scores
from tests.scoretables import BARE, make_mixed, make_table

QUICK = EvaluationOptions(
    resamples=60, prevalence=(1e-2,), completeness_axes=(("theta_e_arcsec",),), fprs=(0.05, 1e-5),
    completeness_fprs=(0.05,),
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(table, name="scores.parquet"):
        pq.write_table(table, tmp_path / name)
        return tmp_path / name

    return write


def entries(path, reference=None, options=QUICK):
    other = None if reference is None else read_scores(reference)
    return plain(measure(read_scores(path), other, options, lambda *_: None).entries)


def without(table, *names):
    return table.drop_columns(list(names))


def wilson(k, n, z):
    """By hand: Wilson 1927."""
    p, spread = k / n, z * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    return [(p + z * z / (2 * n) + sign * spread) / (1 + z * z / n) for sign in (-1, 1)]


def test_the_headline_is_that_of_the_simulated_rows_alone(write):
    mixed = make_mixed()
    found = entries(write(mixed), write(make_mixed(seed=1), "val.parquet"))
    alone = without(mixed.slice(0, 1500), "origin", "kind", "grade")
    val = without(make_mixed(seed=1).slice(0, 1500), "origin", "kind", "grade")
    expected = entries(write(alone, "alone.parquet"), write(val, "val-alone.parquet"))
    assert found["origin"] == "simulated"
    assert "origin" not in expected
    assert "origins" not in expected
    beside = ("notes", "calibration_split", "thresholds_chosen_on", "calibration")
    for name in expected.keys() - {*beside}:
        assert found[name] == expected[name], name
    assert any("900" not in note["text"] and "240 real rows" in note["text"]
               and note["severity"] == "warn" for note in found["notes"])  # fmt: skip


def test_null_and_empty_origins_are_simulated_and_say_nothing(write, tmp_path):
    expected = entries(write(make_table(rows=600, regions=8)))
    spoken = make_table(
        rows=600, regions=8,
        origin=[None, "", " ", "simulated"] * 150, grade=[""] * 600, kind=[None] * 600,
    )  # fmt: skip
    assert entries(write(spoken)) == expected
    pa.csv.write_csv(spoken, tmp_path / "scores.csv")
    assert read_scores(tmp_path / "scores.csv").origins == ("simulated",)
    assert "origins" not in entries(tmp_path / "scores.csv")


def test_empty_text_of_csv_is_no_grade_and_no_kind(tmp_path):
    pa.csv.write_csv(make_mixed(), tmp_path / "scores.csv")
    real = entries(tmp_path / "scores.csv")["origins"]["real"]
    assert sorted(real["recall"][0]["by_grade"]) == ["A", "B", UNSTATED]
    assert sorted(real["false_positives"][0]["by_kind"]) == [
        "artefact", "blank", "spiral", UNSTATED,
    ]  # fmt: skip


def test_each_origin_has_its_own_figures_and_never_the_mixture(write):
    table = make_mixed()
    found = entries(write(table))
    labels, logits = table["label"].to_numpy(), table["logit"].to_numpy()
    for name, rows in (("simulated", slice(0, 1500)), ("real", slice(1500, None))):
        origin = found["origins"][name]
        assert set(APART) <= origin.keys()
        assert origin["n"] == labels[rows].size
        area = roc_auc_score(labels[rows], logits[rows])
        assert origin["auroc"]["value"] == pytest.approx(area, abs=1e-12)
        precision = average_precision_score(labels[rows], logits[rows])
        assert origin["average_precision"]["value"] == pytest.approx(precision, abs=1e-12)
        assert not origin["tpr_at_fpr"]["1e-05"]["supported"]
    assert found["auroc"] == found["origins"]["simulated"]["auroc"]


def test_recall_by_grade_is_that_of_a_count_by_hand(write):
    """Grades A, B and none are the ranks 0, 1 and 2 modulo 3; even ranks score 3, above all."""
    found = entries(write(make_mixed()), options=replace(QUICK, thresholds=(0.0,)))
    cut = found["origins"]["real"]["recall"][0]
    assert cut["threshold"] == 0.0
    for number, grade in enumerate(("A", "B", UNSTATED)):
        ranks = np.arange(number, 80, 3)
        k, n = int((ranks % 2 == 0).sum()), len(ranks)
        entry = cut["by_grade"][grade]
        assert (entry["k"], entry["n"]) == (k, n)
        assert [entry["lo68"], entry["hi68"]] == pytest.approx(wilson(k, n, 1.0), abs=1e-12)
        assert [entry["lo95"], entry["hi95"]] == pytest.approx(
            wilson(k, n, 1.959963984540054), abs=1e-12
        )
        assert entry["low"] < entry["value"] < entry["high"]
    assert (cut["all"]["k"], cut["all"]["n"]) == (40, 80)
    assert found["origins"]["simulated"]["recall"][0]["by_grade"] == {}


def test_false_positives_by_kind_have_upper_limits(write):
    table = make_mixed(real=300)
    logits = table["logit"].to_numpy().copy()
    spirals = np.flatnonzero(np.array(table["kind"].to_pylist(), object) == "spiral")
    logits[spirals[:7]] = 1.0
    table = table.set_column(2, "logit", pa.array(logits))
    cut = entries(write(table), options=replace(QUICK, thresholds=(0.0,)))
    kinds = cut["origins"]["real"]["false_positives"][0]["by_kind"]
    assert (kinds["spiral"]["k"], kinds["spiral"]["n"]) == (7, len(spirals))
    blank = kinds["blank"]
    assert blank["k"] == 0
    # Clopper and Pearson, none of n: 1 - 0.05^(1/n).
    assert blank["independent_upper_limit"] == pytest.approx(1 - 0.05 ** (1 / blank["n"]))
    assert blank["upper_limit"] >= blank["independent_upper_limit"]
    assert kinds["spiral"]["upper_limit"] > kinds["spiral"]["value"]
    assert "lens" not in kinds


def test_many_kinds_are_all_counted(write):
    kinds = [f"kind {i % 70}" for i in range(2100)]
    table = make_mixed(real=2100, kind=kinds)
    by_kind = entries(write(table))["origins"]["real"]["false_positives"][0]["by_kind"]
    assert by_kind.keys() == {*kinds}
    assert {entry["n"] for entry in by_kind.values()} == {20}


def test_a_threshold_guarantees_nothing_for_another_origin(write):
    judged = write(make_mixed())
    reference = write(make_mixed(simulated=6000, regions=40, seed=1), "val.parquet")
    found = entries(judged, reference)
    choice = found["thresholds"][0]
    assert choice["guaranteed"]
    theirs = found["origins"]["real"]["thresholds"][0]
    assert theirs["threshold"] == choice["threshold"]
    assert not theirs["guaranteed"]
    assert theirs["reason"] == "chosen on simulated rows, judged on real ones"
    assert found["origins"]["simulated"]["thresholds"][0] == choice


def test_thresholds_of_another_origin_alone_are_used_and_doubted(write):
    val = make_table(rows=6000, regions=40, seed=1, origin=["real"] * 6000)
    found = entries(write(make_table()), write(val, "val.parquet"))
    assert found["thresholds"][0]["threshold"] is not None
    assert not found["thresholds"][0]["guaranteed"]
    assert found["thresholds"][0]["reason"] == "chosen on real rows, judged on simulated ones"


def test_calibration_rows_without_the_headlines_origin_are_refused(write):
    val = make_mixed(seed=1)
    origin = ["des"] * 1500 + ["real"] * 240
    val = val.set_column(val.column_names.index("origin"), "origin", pa.array(origin))
    with pytest.raises(ScoresError, match=r"holds real and des rows, but not simulated ones"):
        entries(write(make_mixed()), write(val, "val.parquet"))


def test_an_origin_of_one_class_says_what_it_can(write):
    table = make_mixed()
    lenses = table.filter(
        pa.array((np.arange(table.num_rows) < 1500) | (table["label"].to_numpy() == 1))
    )
    real = entries(write(lenses), options=replace(QUICK, thresholds=(0.0,)))["origins"]["real"]
    assert real["unavailable"].startswith("lenses alone")
    for name in ("auroc", "partial_auroc", "average_precision", "brier"):
        assert real[name]["value"] is None
        assert "lenses alone" in real[name]["reason"]
    assert real["completeness_thresholds"][0]["tpr"]["k"] == 40
    assert real["completeness_thresholds"][0]["fpr"]["value"] is None
    assert real["recall"][0]["by_grade"]["A"]["n"] == 27
    assert real["false_positives"][0]["all"]["n"] == 0


def test_classes_of_two_origins_are_no_ranking_unless_pooled(write):
    table = make_table(rows=600, **BARE)
    origin = np.where(table["label"].to_numpy() == 1, "simulated", "real").tolist()
    path = write(table.append_column("origin", pa.array(origin)))
    with pytest.raises(ScoresError, match=r"simulated lenses alone, real non-lenses alone.*--pool"):
        entries(path)
    found = entries(path, options=replace(QUICK, pool=True))
    assert found["origin"] is None
    assert {*found["origins"]} == {"simulated", "real"}


def test_pooled_the_headline_is_of_all_rows_and_says_so(write):
    table = make_mixed()
    found = entries(write(table), options=replace(QUICK, pool=True))
    area = roc_auc_score(table["label"].to_numpy(), table["logit"].to_numpy())
    assert found["auroc"]["value"] == pytest.approx(area, abs=1e-12)
    assert found["n"] == 1740
    assert found["origin"] is None
    apart = entries(write(table))["origins"]
    assert found["origins"]["real"]["auroc"] == apart["real"]["auroc"]
    assert any("are pooled, as asked" in note["text"] for note in found["notes"])


def test_real_rows_alone_are_a_headline_with_grades(write):
    table = make_table(rows=600, origin=["real"] * 600, grade=["A"] * 600)
    found = entries(write(table))
    assert found["origin"] == "real"
    assert found["auroc"] == found["origins"]["real"]["auroc"]
    assert list(found["origins"]["real"]["recall"][0]["by_grade"]) == ["A"]
    expected = entries(write(make_table(rows=600), "plain.parquet"))
    names = expected.keys() - {"thresholds_chosen_on"}
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def test_origins_come_in_one_order_and_rows_keep_their_place_in_the_file(write):
    origin = ["sdss", "real", None, "des"] * 150
    scores = read_scores(write(make_table(rows=600, origin=origin)))
    assert scores.origins == ("simulated", "real", "des", "sdss")
    part = scores.of_origin("des")
    np.testing.assert_array_equal(part.in_file(np.arange(part.n)), np.arange(3, 600, 4))
    assert part.n_regions == np.unique(np.arange(3, 600, 4) % 40).size
    assert judge_origins(scores, None, pool=False).origin == "simulated"


def test_models_are_compared_apart_whatever_the_other_says_of_origins(write):
    ours = make_mixed()
    theirs = without(make_mixed(), "origin", "kind", "grade").take(
        pa.array(np.random.default_rng(0).permutation(1740))
    )
    worse = theirs["logit"].to_numpy().copy()
    worse[worse == -3.0] = -5.0  # real lenses, now below all real non-lenses
    theirs = theirs.set_column(2, "logit", pa.array(worse))
    one, other = read_scores(write(ours)), read_scores(write(theirs, "other.parquet"))
    found = compare_apart(one, other, judge_origins(one, None, pool=False), QUICK)
    assert found["auroc"]["value"] == 0
    assert found["origins"]["simulated"]["auroc"]["value"] == 0
    assert found["origins"]["real"]["auroc"]["this"] == 1.0
    assert found["origins"]["real"]["auroc"]["other"] == 0.5
