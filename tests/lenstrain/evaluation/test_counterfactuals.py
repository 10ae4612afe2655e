"""Families whose truth is known: a finder that sees flux, one that sees lensing, one that sees it
where it is resolved."""

import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lensprep.dataset.strictjson import plain
from lenstrain.evaluation.counterfactuals import Limit, limit_in_words, rank_pairs, tells_above
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.pairs import find_pairs, wins
from lenstrain.evaluation.scores import read_scores
from tests.families import BY_FLUX, BY_SHAPE, KINDS, RESOLVED, add_families
from tests.scoretables import make_table

QUICK = EvaluationOptions(
    resamples=60, completeness_axes=(("theta_e_arcsec",),), completeness_fprs=(0.01, 0.05)
)
ROWS = 6000


@pytest.fixture(scope="module")
def ordinary():
    return make_table(rows=ROWS)


@pytest.fixture
def measured(tmp_path, ordinary):
    """What is measured of the ordinary rows and families of a finder."""

    def run(finder, **options):
        path = tmp_path / f"{finder}.parquet"
        pq.write_table(add_families(ordinary, finder, **options), path)
        return plain(measure(read_scores(path), None, QUICK, lambda stage, done: None).entries)

    return run


def within(entry, value):
    return entry["low"] <= value <= entry["high"]


def test_who_sees_flux_alone_passes_counterfactuals_as_often_as_lenses(measured):
    found = measured(BY_FLUX, families=1500)["counterfactuals"]
    lensed = found["kinds"]["lensed"]
    for kind in KINDS[:-1]:
        cell = found["kinds"][kind]
        assert within(cell["pass_rate"], lensed["pass_rate"]["value"])
        assert cell["factor"] == cell["pass_rate"]["value"] / found["fpr_upper"]
        assert cell["factor"] > 10
    (other,) = found["other_thresholds"]
    assert (found["name"], other["name"]) == ("FPR 0.01", "FPR 0.05")
    assert other["kinds"]["unlensed"]["flagged"] > found["kinds"]["unlensed"]["flagged"]
    pairs = found["pairs"]
    assert (pairs["n"], pairs["auroc"]["families"]) == (6000, 1500)
    cells = [pairs["auroc"], pairs["bright"], *pairs["by_kind"].values()]
    cells += [cell["auroc"] for cell in pairs["by_theta_e"]]
    for entry in cells:
        assert entry["value"] == pytest.approx(0.5, abs=0.06)
    for entry in (pairs["auroc_across"], *pairs["across_by_kind"].values()):
        assert entry["value"] == pytest.approx(0.5, abs=0.02)
    assert pairs["limit"] == 1.0
    assert re.search(r"(cannot|hardly) tells? .* light at any theta_E / PSF", pairs["words"])


def test_who_sees_lensing_alone_ranks_every_lens_above_its_light(measured):
    metrics = measured(BY_SHAPE)
    found, pairs = metrics["counterfactuals"], metrics["counterfactuals"]["pairs"]
    for kind in KINDS[:-1]:
        assert found["kinds"][kind]["pass_rate"]["low"] <= found["fpr_upper"]
        assert found["kinds"][kind]["factor"] < 2
        assert pairs["by_kind"][kind]["value"] == 1.0
    assert pairs["auroc"]["value"] == pairs["auroc"]["high"] == 1.0
    assert pairs["limit"] == 0.0
    assert pairs["limit_by_kind"] == dict.fromkeys(KINDS[:-1], 0.0)
    assert "tells a lens from light at every" in pairs["words"]


def test_the_limit_is_where_the_finder_begins_to_see_shape(measured):
    pairs = measured(RESOLVED, families=1500)["counterfactuals"]["pairs"]
    assert pairs["limit"] == 0.5
    assert pairs["words"].startswith("Below theta_E / PSF = 0.5 this finder cannot tell")
    bins = {cell["lo"]: cell for cell in pairs["by_theta_e_over_psf"]}
    assert list(bins) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (bins[1.0]["hi"], bins[1.0]["label"], bins[1.0]["n"]) == (None, "1 or more", 0)
    assert bins[0.25]["auroc"]["value"] == pytest.approx(0.5, abs=0.06)
    assert bins[0.5]["auroc"]["value"] == 1.0
    assert bins[0.5]["by_kind"]["unlensed"]["n"] * 4 == bins[0.5]["n"]


def test_a_trace_of_shape_wins_every_pair_and_still_tells_nothing(measured, tmp_path, ordinary):
    """Host and noise cancel within a pair, not across families: the limit is that of the latter."""
    table = add_families(ordinary, BY_FLUX, families=1500, kinds=("unlensed", "lensed"))
    logit, pairs = table["logit"].to_numpy().copy(), find_pairs(table)
    logit[pairs.light] = logit[pairs.lens] - 0.01
    place = table.column_names.index("logit")
    pq.write_table(table.set_column(place, "logit", pa.array(logit)), tmp_path / "trace.parquet")
    scores = read_scores(tmp_path / "trace.parquet")
    found = measure(scores, None, QUICK, lambda *_: None).entries["counterfactuals"]["pairs"]
    assert found["auroc"]["value"] == 1.0
    assert found["auroc_across"]["value"] == pytest.approx(0.5, abs=0.02)
    assert found["limit"] == 1.0


def test_the_area_across_families_is_that_of_all_their_rows(measured, ordinary, tmp_path):
    table = add_families(ordinary, RESOLVED, families=200)
    pq.write_table(table, tmp_path / "few.parquet")
    scores = read_scores(tmp_path / "few.parquet")
    ranked = rank_pairs(scores)
    among = ranked.kind == "unlensed"
    found = ranked.across(among, QUICK)
    lens, light = ranked.lens[among][:, None], ranked.light[among][None]
    assert found["families"] == 200
    assert found["value"] == pytest.approx((lens > light).mean() + 0.5 * (lens == light).mean())
    # Once each: the lens of four pairs is one lens.
    light = ranked.light[None]
    assert ranked.across(np.ones(800, bool), QUICK)["value"] == pytest.approx(
        (lens > light).mean() + 0.5 * (lens == light).mean()
    )
    assert ranked.across(ranked.kind == "none", QUICK)["value"] is None


def test_the_hardest_kind_is_named_if_the_others_hide_it(measured, tmp_path, ordinary):
    easy = add_families(ordinary, BY_SHAPE, kinds=("unlensed", "companion", "magnified", "lensed"))
    hard = add_families(ordinary, BY_FLUX, kinds=("scattered", "lensed"), seed=1)
    both = pa.concat_tables([easy, hard.filter(hard["counterfactual"].is_valid())])
    pq.write_table(both, tmp_path / "both.parquet")
    metrics = measure(read_scores(tmp_path / "both.parquet"), None, QUICK, lambda *_: None).entries
    pairs = metrics["counterfactuals"]["pairs"]
    assert pairs["limit"] == 0.0
    assert pairs["limit_by_kind"] == {
        "unlensed": 0.0, "magnified": 0.0, "scattered": 1.0, "companion": 0.0
    }  # fmt: skip
    assert "; it cannot tell one from scattered light at any (" in pairs["words"]


def test_a_neighbour_that_is_told_does_not_hide_light_that_is_not(ordinary, tmp_path):
    easy = add_families(ordinary, BY_SHAPE, kinds=("companion", "magnified", "lensed"))
    hard = add_families(ordinary, BY_FLUX, kinds=("unlensed", "lensed"), seed=1)
    both = pa.concat_tables([easy, hard.filter(hard["counterfactual"].is_valid())])
    pq.write_table(both, tmp_path / "both.parquet")
    metrics = measure(read_scores(tmp_path / "both.parquet"), None, QUICK, lambda *_: None).entries
    pairs = metrics["counterfactuals"]["pairs"]
    assert pairs["auroc_across"]["low"] > 0.6
    assert pairs["limit"] == pairs["limit_by_kind"]["unlensed"] == 1.0
    assert pairs["words"].startswith("This finder cannot tell a lens from unlensed light at any")


def test_kinds_that_some_families_lack_do_not_count_across_families(tmp_path, ordinary):
    """Pieces exist for some lenses only, here the brightest: with them, flux would rank."""
    table = add_families(ordinary, BY_FLUX, families=1500, kinds=("unlensed", "lensed"))
    bright = add_families(ordinary, BY_FLUX, kinds=("scattered", "lensed"), seed=1)
    place, logit = table.column_names.index("logit"), pc.add(bright["logit"], pa.scalar(9.0))
    bright = bright.set_column(place, "logit", logit.cast(pa.float32()))
    made = pa.concat_tables([table, bright.filter(bright["counterfactual"].is_valid())])
    pq.write_table(made, tmp_path / "bright.parquet")
    scores = read_scores(tmp_path / "bright.parquet")
    pairs = measure(scores, None, QUICK, lambda *_: None).entries["counterfactuals"]["pairs"]
    assert pairs["auroc"]["families"] > 1500 >= pairs["auroc_across"]["families"]
    cells = [pairs, pairs["bright"], *pairs["by_theta_e"], *pairs["by_theta_e_over_psf"]]
    for cell in cells:
        if "across_by_kind" in cell:
            assert cell["auroc_across"] == cell["across_by_kind"]["unlensed"]
        else:
            assert 0 < cell["auroc_across"]["families"] <= 1500
    pieces = bright.filter(bright["counterfactual"].is_valid())
    alone = pa.concat_tables([table.filter(table["counterfactual"].is_null()), pieces])
    pq.write_table(alone, tmp_path / "alone.parquet")
    scores = read_scores(tmp_path / "alone.parquet")
    pairs = measure(scores, None, QUICK, lambda *_: None).entries["counterfactuals"]["pairs"]
    assert pairs["auroc_across"] == pairs["across_by_kind"]["scattered"]  # nothing smooth was made


def test_lensed_counterfactuals_pass_as_lenses_of_their_resolution_do(measured):
    """Donors of one Einstein radius: the other lenses are weighted to it, not taken as they are."""
    lensed = measured(BY_SHAPE, families=1500)["counterfactuals"]["kinds"]["lensed"]
    alike = lensed["lenses_alike"]
    assert "factor" not in lensed
    assert within(alike, lensed["pass_rate"]["value"])
    assert lensed["donors"] is None  # the table has no task_id
    wide = measured(BY_SHAPE, families=1500, theta=1.0)["counterfactuals"]["kinds"]["lensed"]
    assert wide["pass_rate"]["value"] > lensed["pass_rate"]["value"] + 0.2
    assert within(wide["lenses_alike"], wide["pass_rate"]["value"])


def test_donors_are_found_by_their_task(tmp_path, ordinary):
    """Their share is that of their arcs on other hosts, but for the noise."""
    tasks = pa.array([f"task-{i}" for i in range(ROWS)])
    table = add_families(ordinary.append_column("task_id", tasks), BY_SHAPE, families=400)
    pq.write_table(table, tmp_path / "tasks.parquet")
    scores = read_scores(tmp_path / "tasks.parquet")
    found = measure(scores, None, QUICK, lambda *_: None).entries["counterfactuals"]
    donors, lensed = found["kinds"]["lensed"]["donors"], found["kinds"]["lensed"]
    families = table.select(["counterfactual", "donor_task_id"]).to_pylist()
    rows = [
        int(row["donor_task_id"].removeprefix("task-"))
        for row in families
        if row["counterfactual"] == "lensed"
    ]
    flagged = ordinary["logit"].to_numpy()[rows] > found["threshold"]
    assert (donors["k"], donors["n"]) == (int(flagged.sum()), 400)
    assert donors["effective"] < 400  # some are donors twice
    assert donors["value"] == pytest.approx(lensed["pass_rate"]["value"], abs=0.03)


def test_what_lenses_are_alike_is_not_known_without_their_resolution(measured, tmp_path):
    bare = make_table(psfsize_r=None)
    pq.write_table(add_families(bare, BY_SHAPE), tmp_path / "bare.parquet")
    path = tmp_path / "bare.parquet"
    found = measure(read_scores(path), None, QUICK, lambda *_: None).entries["counterfactuals"]
    assert found["kinds"]["lensed"]["lenses_alike"] is None
    assert found["pairs"]["limit"] is None
    assert found["pairs"]["words"].startswith("Too few pairs to say")


def test_every_other_figure_is_that_of_the_table_without_them(measured, tmp_path, ordinary):
    path = tmp_path / "flux.parquet"  # where the other is written too: only the rows may matter
    pq.write_table(ordinary, path)
    without = plain(measure(read_scores(path), None, QUICK, lambda *_: None).entries)
    assert "counterfactuals" not in without
    having = measured(BY_FLUX)
    having.pop("counterfactuals")
    notes = having.pop("notes")
    assert having == {name: item for name, item in without.items() if name != "notes"}
    assert list(having) == [name for name in without if name != "notes"]
    (more,) = [note for note in notes if note not in without["notes"]]
    assert more["text"].startswith(
        "1,500 counterfactuals (unlensed 300, magnified 300, extended 300, companion 300, lensed "
        "300) are in a table of their own"
    )


def test_intervals_are_by_region_and_a_family_is_one_observation(tmp_path, ordinary):
    """Two regions that differ are two observations, however many pairs they hold."""
    table = add_families(ordinary, BY_SHAPE)
    path = tmp_path / "split.parquet"
    region, kind = table["region_id"].to_numpy(), np.array(table["counterfactual"].to_pylist())
    made = kind != np.array(None)
    odd = (region % 2 == 0) & made & (kind != "lensed")
    logits = np.where(odd, 99.0, table["logit"].to_numpy()).astype(np.float32)
    two = np.where(made, region % 2, region).astype(np.int32)
    table = table.set_column(table.column_names.index("logit"), "logit", pa.array(logits))
    everything = np.ones(1200, bool)
    pq.write_table(table, path)
    many = rank_pairs(read_scores(path)).entry(everything, 0.95)
    pq.write_table(
        table.set_column(table.column_names.index("region_id"), "region_id", pa.array(two)), path
    )
    few = rank_pairs(read_scores(path)).entry(everything, 0.95)
    assert many["value"] == few["value"]
    assert few["regions"] == 2
    assert few["high"] - few["low"] > 0.9
    assert many["high"] - many["low"] < 0.4
    assert many["effective"] < many["families"] == 300


def test_an_entry_without_pairs_says_so(tmp_path, ordinary):
    path = tmp_path / "alone.parquet"
    pq.write_table(add_families(ordinary, BY_SHAPE, kinds=("unlensed",)), path)
    metrics = plain(measure(read_scores(path), None, QUICK, lambda *_: None).entries)
    pairs = metrics["counterfactuals"]["pairs"]
    assert (pairs["n"], pairs["auroc"]["value"], pairs["limit"]) == (0, None, None)
    assert (pairs["by_kind"], pairs["by_theta_e"]) == ({}, [])
    assert pairs["words"].startswith("No counterfactual has the lens of its family")
    assert metrics["counterfactuals"]["kinds"]["unlensed"]["n"] == 300


def test_pairs_need_one_host_and_one_donor():
    table = pa.table({
        "counterfactual": ["lensed", None, "unlensed", "unlensed", "scattered", "lensed", None,
                           "unlensed"],
        "host_task_id": ["h", None, "h", "i", "h", None, "h", None],
        "donor_task_id": ["d", None, "d", "d", "d", None, "d", None],
    })  # fmt: skip
    pairs = find_pairs(table)
    assert pairs.lens.tolist() == [0, 0]
    assert pairs.light.tolist() == [2, 4]
    assert pairs.kind.tolist() == ["unlensed", "scattered"]
    logits = np.array([1.0, 9, 0, 9, 1, 9, 9, 9])
    assert wins(logits[pairs.lens], logits[pairs.light]).tolist() == [1.0, 0.5]
    assert find_pairs(table.select(["counterfactual"])).lens.size == 0


def cell(low, families=50, value=None):
    value = low if value is None else value
    return {"low": low, "value": value, "high": value, "families": families}


@pytest.mark.parametrize(
    ("bins", "limit"),
    [
        ([cell(0.5), cell(0.61), cell(0.9)], Limit(0.25, math.inf, (0.5, 0.5, 0.5))),
        # 0.6 itself does not do
        ([cell(0.7), cell(0.6), cell(0.9)], Limit(0.5, math.inf, (0.6, 0.6, 0.6))),
        ([cell(0.7), cell(0.8), cell(0.9)], Limit(0.0, math.inf)),
        ([cell(0.4), cell(0.8), cell(0.5)], Limit(math.inf, math.inf, (0.5, 0.5, 0.5))),
        ([cell(0.4), cell(0.8), cell(0.1, families=19)], Limit(0.25, 0.5, (0.4, 0.4, 0.4))),
        ([cell(0.4), cell(math.nan), cell(math.nan)], Limit(0.25, 0.25, (0.4, 0.4, 0.4))),
        ([cell(0.4, value=0.7), cell(0.8), cell(0.9)], Limit(0.25, math.inf, (0.7, 0.4, 0.7))),
        ([cell(0.4, families=0)] * 3, None),
    ],
)
def test_the_limit_is_the_edge_of_the_highest_bin_that_fails(bins, limit):
    found = tells_above(list(zip((0.25, 0.5, math.inf), bins, strict=True)))
    assert found == limit


CHANCE, HARDLY, PERHAPS = (0.5, 0.48, 0.52), (0.57, 0.54, 0.61), (0.7, 0.4, 0.9)
"""AUROCs of a finder that cannot tell, that hardly tells, and of too few pairs to say."""


@pytest.mark.parametrize(
    ("auroc", "verb"),
    [
        (CHANCE, "cannot tell"),
        (HARDLY, "hardly tells"),
        # Too few pairs to be sure is not the same as a finder that fails.
        (PERHAPS, "is not shown to tell"),
        ((0.5, 0.3, 0.7), "is not shown to tell"),
    ],
)
def test_the_limit_reads_as_a_sentence_that_names_kind_and_figure(auroc, verb):
    figure = "{:.3f} [{:.3f}, {:.3f}]".format(*auroc)
    kinds = {"unlensed": Limit(0.0, math.inf), "extended": Limit(0.5, math.inf, auroc)}
    assert limit_in_words(9, kinds) == (
        f"Below theta_E / PSF = 0.5 this finder {verb} a lens from extended light (AUROC across "
        f"families {figure} in the bin below that; all of it must exceed 0.6)."
    )
    assert limit_in_words(9, {"extended": Limit(math.inf, math.inf, auroc)}) == (
        f"This finder {verb} a lens from extended light at any theta_E / PSF that was measured "
        f"(AUROC across families {figure} in the highest bin; all of it must exceed 0.6)."
    )


def test_the_hardest_of_kinds_with_one_limit_is_named():
    kinds = {"unlensed": Limit(0.5, math.inf, HARDLY), "extended": Limit(0.5, math.inf, CHANCE)}
    assert "cannot tell a lens from extended light (" in limit_in_words(9, kinds)


def test_pieces_and_neighbours_are_said_apart_if_they_are_harder():
    some = Limit(0.5, math.inf, CHANCE)
    kinds = {"unlensed": some, "scattered": Limit(0.75, math.inf, HARDLY), "companion": None}
    assert limit_in_words(9, kinds).endswith(
        "; it hardly tells one from scattered light below 0.75 (0.570 [0.540, 0.610])."
    )
    kinds["scattered"] = Limit(0.75, 0.75, PERHAPS)
    assert "; it is not shown to tell one from scattered light at any (" in limit_in_words(9, kinds)
    kinds["scattered"] = Limit(0.5, math.inf, (0.45, 0.4, 0.5))
    assert ";" not in limit_in_words(9, kinds).replace("; all of it", "")


def test_a_kind_that_surely_fails_is_not_hidden_by_one_that_may():
    may, fails = Limit(0.5, math.inf, PERHAPS), Limit(0.5, 0.75, CHANCE)
    told = limit_in_words(9, {"unlensed": may, "scattered": fails})
    assert "is not shown to tell a lens from unlensed light (" in told
    assert "; it cannot tell one from scattered light below 0.5 (" in told
    told = limit_in_words(9, {"unlensed": fails, "scattered": may})
    assert "scattered" not in told


def test_smooth_light_that_does_not_decide_leaves_the_other_kinds_their_say():
    few = "Too few pairs of smooth light to say where this finder tells a lens from light"
    for limit, words in (
        (Limit(math.inf, math.inf, CHANCE), "This finder cannot tell a lens from scattered light "
         "at any theta_E / PSF that was measured ("),
        (Limit(0.75, math.inf, PERHAPS), "Below theta_E / PSF = 0.75 this finder is not shown to "
         "tell a lens from scattered light ("),
        (Limit(0.0, math.inf), "This finder tells a lens from scattered light at every theta_E / "
         "PSF that was measured."),
    ):  # fmt: skip
        found = limit_in_words(9, {"unlensed": None, "scattered": limit})
        assert found.startswith(few)
        assert f"are needed. {words}" in found
    assert limit_in_words(9, {"unlensed": None}).startswith("Too few pairs to say")
