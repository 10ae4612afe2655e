"""Known lenses: matched on the sphere, counted once, by grade; the missed ones named and shown."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.stats import binom_conf_interval
from scipy import stats

from lensprep.errors import ScoresError
from lensprep.tables.catalog import read_catalog
from lenstrain.evaluation.catalog import match_catalog, measure_catalog
from lenstrain.evaluation.notes import known_lens_notes
from lenstrain.evaluation.operating import FrozenThreshold
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.pages.evaluate import evaluate
from lenstrain.scoretable import read_sky_scores
from tests.scoretables import BARE, make_table

QUICK = EvaluationOptions(
    resamples=60, examples=2, prevalence=(), completeness_axes=(("theta_e_arcsec",),)
)
CUTS = [
    FrozenThreshold(name="FPR 0.01", kind="given", threshold=2.0),
    FrozenThreshold(name="FPR 0.001", kind="given", threshold=4.0),
    FrozenThreshold(name="FPR 1e-05", kind="given", threshold=None),
]
HEAD = "name,RA,DEC,zlens,type,grading,ref"


def catalog(path, *rows, head=HEAD):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def sky(path, **columns):
    n = len(columns["ra"])
    table = {"key": [f"s{i}" for i in range(n)], "logit": np.arange(n, dtype=np.float32)} | columns
    pq.write_table(pa.table(table), path)
    return read_sky_scores(path)


def test_a_lens_is_found_across_the_zero_of_ra_and_at_the_pole(tmp_path):
    arcsec = 1 / 3600
    scores = sky(tmp_path / "s.parquet", ra=[0.0, 200.0, 10.0], dec=[0.0, 89.9999, 60.0])
    known = read_catalog(
        catalog(
            tmp_path / "c.csv",
            f"wrap,{360 - 1.5 * arcsec},0,-,galaxy,confident,x",
            "pole,20,89.9999,-,galaxy,confident,x",  # across the pole: 0.72 arcsec away
            f"north,{10 + 3 * arcsec},60,-,galaxy,probable,x",  # 3 arcsec of RA are 1.5 on the sky
            f"off,10,{60 + 2.1 * arcsec},-,galaxy,probable,x",
        )
    )
    match = match_catalog(known, scores, 2.0)
    assert [known.name[i] for i in match.lens] == ["wrap", "pole", "north"]
    assert match.stamp.tolist() == [0, 1, 2]
    np.testing.assert_allclose(match.separation_arcsec, [1.5, 0.72, 1.5], atol=0.01)


def test_one_object_under_two_names_counts_once(tmp_path):
    scores = sky(tmp_path / "s.parquet", ra=[10.0, 20.0], dec=[0.0, 0.0])
    rows = ["far,10.0004,0,-,galaxy,probable,x", "near,10.0001,0,-,galaxy,confident,x"]
    known = read_catalog(catalog(tmp_path / "c.csv", *rows))
    entry = measure_catalog(known, scores, CUTS, QUICK)
    match = match_catalog(known, scores, QUICK.match_radius_arcsec)
    assert [known.name[i] for i in match.lens] == ["near"]
    assert (entry["n_matched"], entry["n_repeated"], entry["n_catalog"]) == (1, 1, 2)
    assert list(entry["recall"][0]["by_grade"]) == ["confident"]


def test_a_stamp_with_an_injected_arc_is_no_image_of_a_known_lens(tmp_path):
    scores = sky(
        tmp_path / "s.parquet", ra=[10.0, 10.0], dec=[0.0, 0.0001], theta_e_arcsec=[1.0, 0.0]
    )
    known = read_catalog(catalog(tmp_path / "c.csv", "L,10,0,-,galaxy,confident,x"))
    entry = measure_catalog(known, scores, CUTS, QUICK)
    match = match_catalog(known, scores, QUICK.match_radius_arcsec)
    assert match.stamp.tolist() == [1]
    assert entry["n_injected_left_out"] == 1


@pytest.fixture
def ten(tmp_path):
    """Ten lenses, six confident: logits 0 to 9, all matched but the last of the catalogue."""
    scores = sky(tmp_path / "s.parquet", ra=np.arange(10.0), dec=np.zeros(10))
    rows = [f"L{i},{i},0,-,galaxy,{'confident' if i < 6 else 'probable'},x" for i in range(10)] + [
        "Far,100,0,-,galaxy,confident,x"
    ]
    return read_catalog(catalog(tmp_path / "c.csv", *rows)), scores


def test_recall_by_grade_with_the_intervals_of_astropy(ten):
    entry = measure_catalog(*ten, CUTS, QUICK)
    assert (entry["n_catalog"], entry["n_matched"]) == (11, 10)
    first, second = entry["recall"]  # a threshold that is not supported has no recall
    assert (first["all"]["k"], first["all"]["n"]) == (7, 10)
    assert (second["all"]["k"], second["all"]["n"]) == (5, 10)
    confident, probable = first["by_grade"]["confident"], first["by_grade"]["probable"]
    assert (confident["k"], confident["n"], confident["value"]) == (3, 6, 0.5)
    assert (probable["k"], probable["n"], probable["value"]) == (4, 4, 1.0)
    for cell in (first["all"], confident, probable):
        low, high = binom_conf_interval(cell["k"], cell["n"], 0.95, interval="wilson")
        assert (cell["low"], cell["high"]) == pytest.approx((low, high), abs=1e-12)
    missed = [lens["name"] for lens in entry["missed"]]
    assert missed == ["L0", "L1", "L2"]  # at the first threshold, lowest score first


def test_lenses_of_one_region_count_together(tmp_path):
    ra = np.arange(12.0)
    scores = sky(tmp_path / "s.parquet", ra=ra, dec=np.zeros(12), region_id=np.repeat([1, 2, 3], 4))
    rows = [f"L{i},{i},0,-,galaxy,A,x" for i in range(12)]
    known = read_catalog(catalog(tmp_path / "c.csv", *rows))
    cut = [FrozenThreshold(name="t", kind="given", threshold=3.5)]
    entry = measure_catalog(known, scores, cut, EvaluationOptions(resamples=2000))
    recall = entry["recall"][0]["all"]
    assert (recall["method"], recall["regions"]) == ("regions", 3)
    # One region is missed and two are found: with so few, their scatter leaves less than one row.
    share, scatter = 2 / 3, 2 * (4 - 8 / 3) ** 2 + (8 / 3) ** 2
    seen = 144 * share * (1 - share) / (scatter * 3 / 2)
    assert seen == pytest.approx(2)
    few = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 2)) ** 2
    assert recall["effective"] == pytest.approx(seen * few)
    assert recall["effective"] < 1
    assert recall["low"] < 0.1
    assert recall["high"] > 0.95
    assert recall["wilson_low"] > 0.3


def test_recall_stands_in_metrics_page_card_and_table(tmp_path):
    pq.write_table(make_table(**BARE), tmp_path / "scores.parquet")
    n = 40
    logit = np.linspace(-8, 8, n).astype(np.float32)
    real = {"key": [f"r{i}" for i in range(n)], "logit": logit}
    pq.write_table(
        pa.table(real | {"ra": np.arange(n) * 1.0, "dec": np.zeros(n)}), tmp_path / "real.parquet"
    )
    rows = [f"Lens <{i}>,{i},0,-,galaxy,confident,x" for i in range(n)]
    metrics = evaluate(
        tmp_path / "scores.parquet",
        tmp_path / "out",
        catalog=catalog(tmp_path / "c.csv", *rows),
        catalog_scores=tmp_path / "real.parquet",
        options=QUICK,
    )
    known = metrics["known_lenses"]
    cut = metrics["completeness_thresholds"][0]["threshold"]
    assert known["recall"][0]["threshold"] == cut
    assert known["recall"][0]["all"]["k"] == int((logit > cut).sum())
    assert len(known["missed"]) == int((logit <= cut).sum()) > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Lens &lt;0&gt;" in page
    assert "Lens <0>" not in page
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert f"{known['recall'][0]['all']['k']} of 40" in card
    lines = (tmp_path / "out" / "known_lenses.csv").read_text().splitlines()
    assert len(lines) == 1 + n
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["known_lenses"] == known


def test_scores_without_positions_or_of_another_model_are_refused(tmp_path, write_scores):
    path = catalog(tmp_path / "c.csv", "a,1,2,-,galaxy,confident,x")
    one = write_scores("one.parquet", {"checkpoint_sha256": "aa"})
    with pytest.raises(ScoresError, match="has no column ra: a catalogue is matched by position"):
        evaluate(one, tmp_path / "out", catalog=path, options=QUICK)
    other = write_scores("other.parquet", {"checkpoint_sha256": "bb"}, seed=1)
    with pytest.raises(ScoresError, match="another checkpoint_sha256"):
        evaluate(one, tmp_path / "out", catalog=path, catalog_scores=other, options=QUICK)
    assert not (tmp_path / "out").exists()


def test_a_catalogue_elsewhere_on_the_sky_is_said_to_measure_nothing(tmp_path):
    known = read_catalog(catalog(tmp_path / "c.csv", "a,1,2,-,galaxy,confident,x"))
    scores = sky(tmp_path / "s.parquet", ra=[200.0, 201.0], dec=[0.0, 1.0])
    entry = measure_catalog(known, scores, CUTS, QUICK)
    assert entry["n_matched"] == 0
    assert entry["recall"][0]["all"]["value"] is None
    assert "recall is not measured" in known_lens_notes(entry)[0]["text"]
    few = entry | {"n_matched": 6}
    assert "6 known lenses are few" in known_lens_notes(few)[0]["text"]
    assert known_lens_notes(entry | {"n_matched": 30}) == []


def test_scores_off_the_sky_are_one_clear_error_and_unknown_places_match_nothing(tmp_path):
    known = read_catalog(catalog(tmp_path / "c.csv", "L,-10,0,-,galaxy,confident,x"))
    scores = sky(tmp_path / "s.parquet", ra=[350.0, np.nan, 10.0], dec=[0.0, 0.0, None])
    assert match_catalog(known, scores, 2.0).stamp.tolist() == [0]
    scores = sky(tmp_path / "s.parquet", ra=[350.0, 10.0], dec=[0.0, -90.5])
    with pytest.raises(ScoresError, match=r"s\.parquet: 1 rows .* row 2, key s1: ra 10, dec -90.5"):
        match_catalog(known, scores, 2.0)


def test_scores_and_catalogue_of_others_are_matched_as_they_are(tmp_path):
    """Decimal commas and hours in the one, sexagesimal text under a comment in the other."""
    lines = [f"{i:04d};{i - 5};{i / 10};{-i / 5}".replace(".", ",") for i in range(20)]
    path = tmp_path / "own.csv"
    path.write_text("\r\n".join(["objid;score;RA [h];DEJ2000", *lines]), encoding="utf-8-sig")
    scores = read_sky_scores(path, {"key": "objid", "logit": "score"})
    path = tmp_path / "known.dat"
    path.write_text("# id ra dec\nL1 00:06:00 -00:12:00\nL3 00h18m00s -00d36m00s\n")
    known = read_catalog(path)
    match = match_catalog(known, scores, 2.0)
    assert known.name == ["L1", "L3"]
    assert scores.table["key"].take(pa.array(match.stamp)).to_pylist() == ["0001", "0003"]
    assert scores.logits[match.stamp].tolist() == [-4, -2]
