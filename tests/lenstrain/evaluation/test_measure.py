"""What a measurement says of awkward tables, before anything is drawn or written."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset.strictjson import plain
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from tests.scoretables import make_table

# Few draws: these tests are about what is said, not about precision.
QUICK = EvaluationOptions(
    resamples=60, completeness_axes=(("theta_e_arcsec",), ("theta_e_arcsec", "psfsize_r"))
)


def measured(path, reference=None, options=QUICK):
    other = None if reference is None else read_scores(reference)
    found = measure(read_scores(path), other, options, lambda stage, done: None)
    return plain(found.entries)


def test_fewer_than_thirty_regions_promise_nothing(write_scores):
    judged = write_scores("judged.parquet")
    for regions, promised in ((20, False), (30, True)):
        reference = write_scores(f"{regions}.parquet", rows=6000, regions=regions, seed=1)
        metrics = measured(judged, reference)
        choice = metrics["thresholds"][0]
        assert choice["threshold"] is not None
        assert choice["guaranteed"] is promised
        assert ("20 regions are too few to guarantee a rate" in choice["reason"]) is not promised
        said = any("No threshold is guaranteed" in note["text"] for note in metrics["notes"])
        assert said is not promised


def test_regions_that_promise_are_those_of_the_non_lenses_in_question(write_scores):
    """Seeing is a region's own: each bin of it holds about a quarter of the regions."""
    judged = write_scores("judged.parquet")
    metrics = measured(judged, write_scores("plain.parquet", rows=8000, regions=40, seed=1))
    assert metrics["thresholds"][0]["guaranteed"]
    bins = metrics["thresholds_by_seeing"]
    assert bins
    assert not any(choice["guaranteed"] for choice in bins)
    assert any("too few to guarantee" in choice["reason"] for choice in bins)
    # Non-lenses in ten regions alone, lenses in all forty.
    table = make_table(rows=8000, regions=40, seed=1)
    region, lens = table["region_id"].to_numpy(), table["label"].to_numpy() == 1
    narrow = np.where(lens, region, 5000 + region % 10).astype(np.int32)
    few = write_scores("few.parquet", rows=8000, regions=40, seed=1, region_id=narrow)
    choice = measured(judged, few)["thresholds"][0]
    assert not choice["guaranteed"]
    assert "10 regions are too few to guarantee a rate" in choice["reason"]


def test_without_another_split_nothing_is_guaranteed(write_scores):
    metrics = measured(write_scores())
    assert not any(choice["guaranteed"] for choice in metrics["thresholds"])
    assert metrics["calibrated"] is None
    assert any("--calibrate-on" in note["text"] for note in metrics["notes"])


def test_calibrating_on_the_same_stamps_is_noted(write_scores):
    path = write_scores()
    metrics = measured(path, path)
    assert any("1,200 stamps are in the judged scores too" in n["text"] for n in metrics["notes"])


def test_a_tie_block_at_the_threshold_is_named(write_scores):
    table = make_table(rows=400, theta_e_arcsec=None)
    logits = table["logit"].to_numpy().copy()
    logits[np.argsort(logits)[-280:]] = 5.0  # as a float32 sigmoid would do
    options = replace(QUICK, fprs=(0.1, 1e-2))
    metrics = measured(write_scores(rows=400, theta_e_arcsec=None, logit=logits), options=options)
    assert metrics["largest_tie"]["rows"] == 280
    texts = " ".join(note["text"] for note in metrics["notes"])
    assert "280 rows (70.0%) share the score 5" in texts
    assert "280 rows are tied at the threshold of FPR 10%" in texts
    assert "threshold of FPR 1%" not in texts  # which has no support, so no threshold either
    assert metrics["tpr_at_fpr"]["0.1"]["value"] == 0.0


def test_an_empty_stratum_has_a_reason_not_a_number(write_scores):
    table = make_table(rows=600)
    psf = np.where(table["label"].to_numpy() == 1, 1.2, 1.4)  # a class in each bin
    metrics = measured(write_scores(rows=600, psfsize_r=psf))
    low, high = metrics["strata"]["psfsize_r"]
    assert low["fpr"]["value"] is None
    assert low["fpr"]["reason"] == "no row of this kind"
    assert high["tpr"]["value"] is None
    assert low["auroc"]["reason"] == "one class only in this stratum"


def intervals_of(tree, place=""):
    """Every figure with an interval, and where it is."""
    if isinstance(tree, dict):
        if {"value", "low", "high"} <= tree.keys():
            yield place, tree
        for name, item in tree.items():
            yield from intervals_of(item, f"{place}/{name}")
    elif isinstance(tree, list):
        for item in tree:
            yield from intervals_of(item, place)


def test_one_region_has_no_interval(write_scores):
    metrics = measured(write_scores(regions=1), write_scores("other.parquet", regions=1, seed=1))
    metrics.pop("auroc_delong")  # of independent rows, by name
    for place, entry in intervals_of(metrics):
        assert (entry["low"], entry["high"]) == (None, None), place
    assert not any(choice["guaranteed"] for choice in metrics["thresholds"])
    assert metrics["completeness_thresholds"][0]["threshold"] is not None
    assert any(note["text"].startswith("One region only") for note in metrics["notes"])


def test_repeated_controls_do_not_support_a_rate(write_scores):
    hashes = [f"{i % 100:032x}" for i in range(1200)]
    metrics = measured(write_scores(pixel_hash=hashes))
    assert metrics["n_negative_unique"] <= 100
    assert metrics["tpr_at_fpr"]["0.01"]["supported"] is False


def test_bca_intervals_differ_but_hold_the_value(write_scores):
    path = write_scores(rows=600)
    plain = measured(path)["auroc"]
    options = EvaluationOptions(resamples=60, interval="bca", completeness_axes=())
    bca = measured(path, options=options)["auroc"]
    assert bca["value"] == plain["value"]
    assert (bca["low"], bca["high"]) != (plain["low"], plain["high"])
    assert bca["low"] < bca["value"] < bca["high"]


def test_the_same_seed_gives_the_same_figures(write_scores):
    path = write_scores()
    first, second = measured(path), measured(path)
    assert first == second
    other = measured(path, options=EvaluationOptions(resamples=60, seed=1))
    assert other["auroc"]["low"] != first["auroc"]["low"]
    assert other["auroc"]["value"] == first["auroc"]["value"]


@pytest.mark.parametrize("interval", ["t", "percentile", "bca"])
@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "two regions",
        "perfect",
        "useless",
        "tied",
        "tiny",
    ],
)
def test_every_interval_holds_its_value(write_scores, interval, case):
    label = make_table()["label"].to_numpy()
    row = np.arange(1200)
    changes = {
        "plain": {},
        "two regions": {"regions": 2},
        "perfect": {"logit": 10.0 * label - 5 + row / 1e3},
        "useless": {"logit": -10.0 * label + 5 + row / 1e3},
        "tied": {"logit": 2.0 * label},
        "tiny": {"rows": 12, "regions": 4},
    }
    options = replace(
        QUICK, interval=interval, fprs=(0.3, 0.1, 1e-2), prevalence=(0.1, 1e-3), prevalence_dex=0.3
    )
    metrics = measured(write_scores(**changes[case]), options=options)
    found = 0
    for place, entry in intervals_of(metrics):
        assert (entry["low"] is None) == (entry["high"] is None), place
        if entry["value"] is None:
            assert entry["low"] is None, place
        elif interval != "t" and "average_precision" in place:
            assert entry["low"] <= entry["high"]  # draws are biased, and so are their percentiles
        elif entry["low"] is not None:
            # A squared error less its sampling part may be negative; its interval is not.
            value = max(entry["value"], 0.0) if "debiased" in place else entry["value"]
            assert entry["low"] - 1e-12 <= value <= entry["high"] + 1e-12, place
            found += 1
        if entry.get("upper_limit") is not None:
            assert entry["upper_limit"] >= entry["value"], place
    assert found > 20 or case == "tiny"


def numbers_of(tree, place=""):
    """Every leaf of the figures, and where it is."""
    if isinstance(tree, dict):
        for name, item in tree.items():
            yield from numbers_of(item, f"{place}/{name}")
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from numbers_of(item, f"{place}/{index}")
    else:
        yield place, tree


def assert_same_figures(one, other):
    ours, theirs = dict(numbers_of(one)), dict(numbers_of(other))
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        if place.endswith("sha256"):
            continue
        if isinstance(value, float) and theirs[place] is not None:
            assert theirs[place] == pytest.approx(value, rel=1e-9, abs=1e-12), place
        else:
            assert theirs[place] == value, place


def shuffled(path, seed):
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(seed).permutation(table.num_rows)), path)


@pytest.mark.parametrize("interval", ["t", "bca"])
def test_no_figure_depends_on_the_order_of_rows(write_scores, interval):
    images = np.arange(1200) % 40 + 40 * (np.arange(1200) // 40 % 10)
    table = make_table()
    logits = np.round(table["logit"].to_numpy(), 1)  # many ties
    columns = {"pixel_hash": [f"{image:032x}" for image in images], "logit": logits}
    for column in ("logit", "label"):  # an image has one score and one label
        columns[column] = np.asarray(columns.get(column, table[column]))[images]
    options = replace(QUICK, interval=interval, fprs=(0.3, 0.1))
    path, other = write_scores(**columns), write_scores("other.parquet", seed=1)
    before = measured(path, other, options)
    assert before["correlation"]["non_lenses"] > 0
    shuffled(path, 0)
    shuffled(other, 1)
    assert_same_figures(before, measured(path, other, options))


def test_an_image_in_two_regions_does_not_depend_on_the_order_of_rows(write_scores):
    path = write_scores(pixel_hash=[f"{row % 300:032x}" for row in range(1200)])
    before = measured(path)
    shuffled(path, 0)
    assert_same_figures(before, measured(path))


def test_the_correlation_is_that_of_distinct_images(write_scores):
    """Rows that repeat an image say nothing of what a region has in common."""
    rng = np.random.default_rng(7)
    image = np.arange(1200) // 6
    logit = rng.normal(size=200)[image]
    columns = {
        "logit": logit,
        "label": (image % 2).astype(np.int8),
        "region_id": image % 100,
        "pixel_hash": [f"{i:x}" for i in image],
    }
    correlation = measured(write_scores(**columns))["correlation"]
    assert set(correlation) == {"non_lenses", "lenses"}
    assert max(correlation.values()) < 0.3
    without = measured(write_scores(**(columns | {"pixel_hash": None})))["correlation"]
    assert min(without.values()) > 0.3


def test_each_bin_of_seeing_has_a_threshold_of_its_own(write_scores):
    rows = 8000
    psf = np.random.default_rng(0).uniform(1.0, 1.6, rows)
    options = replace(QUICK, completeness_fprs=(0.1,), axis_bins=2)
    paths = []
    for seed, name in ((0, "a.parquet"), (1, "b.parquet")):
        table = make_table(rows=rows, seed=seed)
        logit = table["logit"].to_numpy() + 4.0 * (psf > 1.3)  # worse seeing looks like arcs
        paths.append(write_scores(name, rows=rows, seed=seed, psfsize_r=psf, logit=logit))
    metrics = measured(*paths, options=options)
    sharp, blurred = metrics["thresholds_by_seeing"]
    assert (sharp["lo"], blurred["hi"]) == (pytest.approx(psf.min()), pytest.approx(psf.max()))
    assert sharp["hi"] == blurred["lo"] == pytest.approx(np.median(psf))
    assert blurred["threshold"] - sharp["threshold"] == pytest.approx(4.0, abs=1.0)
    for entry in (sharp, blurred):
        assert (entry["guaranteed"], entry["kind"], entry["target_fpr"]) == (True, "seeing", 0.1)
        assert entry["fpr"]["low"] < 0.1
    one = metrics["completeness_thresholds"][0]["fpr"]["value"]
    by_bin = [entry["fpr"]["value"] for entry in (sharp, blurred)]
    strata = [entry["fpr"]["value"] for entry in metrics["strata"]["psfsize_r"]]
    assert strata[0] < one < strata[1]
    assert max(by_bin) - min(by_bin) < strata[1] - strata[0]


def test_completeness_has_no_threshold_where_a_rate_has_no_support(write_scores):
    options = replace(QUICK, completeness_fprs=(0.1, 1e-4))
    found = measure(
        read_scores(write_scores()),
        read_scores(write_scores("other.parquet", seed=1)),
        options,
        lambda stage, done: None,
    )
    first, second = found.entries["completeness_thresholds"]
    assert (first["kind"], first["guaranteed"]) == ("neyman_pearson", True)
    assert (second["threshold"], second["guaranteed"]) == (None, False)
    assert second["reason"].startswith("needs 29,956 independent non-lenses")
    assert "tpr" not in second
    assert {table.threshold.name for table in found.completeness} == {"FPR 0.1"}


def test_the_sample_itself_gives_an_operating_point_where_nothing_has_support(write_scores):
    metrics = measured(write_scores(rows=40, regions=4), options=QUICK)
    first = metrics["completeness_thresholds"][0]
    assert (first["kind"], first["guaranteed"]) == ("empirical", False)
    assert first["threshold"] is not None
    assert first["tpr"]["n"] == metrics["n_positive"]


def test_few_regions_are_noted(write_scores):
    metrics = measured(write_scores(regions=12))
    assert any(note["text"].startswith("12 regions are few") for note in metrics["notes"])


def test_a_calibration_without_an_optimum_is_not_applied(write_scores):
    labels = make_table()["label"].to_numpy()
    apart = write_scores("apart.parquet", logit=10.0 * labels - 5)
    metrics = measured(write_scores(), apart)
    assert metrics["calibration"]["at_bound"] is True
    assert metrics["calibrated"] is None
    assert any("no map is applied" in note["text"] for note in metrics["notes"])


def test_perfect_ranks_do_not_pass_for_certainty(write_scores):
    labels = make_table()["label"].to_numpy()
    metrics = measured(
        write_scores(logit=10.0 * labels - 5 + np.arange(1200) / 1e3),
        options=replace(QUICK, fprs=(0.1,)),
    )
    assert metrics["auroc"]["value"] == 1.0
    assert metrics["auroc"]["low"] < 0.95
    assert metrics["auroc"]["high"] == 1.0
    rate = metrics["tpr_at_fpr"]["0.1"]
    assert (rate["value"], rate["high"]) == (1.0, 1.0)
    assert rate["low"] <= rate["wilson_low"] < 1.0
    assert metrics["partial_auroc"]["low"] < metrics["partial_auroc"]["high"] == 1.0


def test_given_edges_are_used_and_what_lies_beyond_is_counted(write_scores):
    options = EvaluationOptions(
        resamples=60,
        completeness_axes=(("psfsize_r",), ("arc_snr", "psfsize_r")),
        axis_edges={"psfsize_r": (1.2, 1.3, 1.4)},
    )
    path = write_scores()
    found = measure(read_scores(path), None, options, lambda stage, done: None)
    table = make_table()
    psf = table["psfsize_r"].to_numpy()[table["label"].to_numpy() == 1]
    cells = found.completeness[0].cells
    assert cells.axes[0].edges.tolist() == [1.2, 1.3, 1.4]
    assert cells.n.tolist() == np.histogram(psf, [1.2, 1.3, 1.4])[0].tolist()
    beyond = int(((psf < 1.2) | (psf > 1.4)).sum())
    assert beyond > 0
    assert found.entries["completeness_beyond_bins"]["psfsize_r"] == beyond
    assert any(f"{beyond:,} lenses lie beyond" in note["text"] for note in found.entries["notes"])


def test_the_unresolved_share_is_of_lenses_of_known_seeing(write_scores):
    table = make_table()
    lens = table["label"].to_numpy() == 1
    psf = table["psfsize_r"].to_numpy().copy()
    gone = np.flatnonzero(lens)[::3]
    ratio = np.delete(table["theta_e_arcsec"].to_numpy(), gone) / np.delete(psf, gone)
    psf[gone] = np.nan
    metrics = measured(write_scores(psfsize_r=psf))
    share = (ratio[np.delete(lens, gone)] < 0.5).mean()
    assert metrics["unresolved_share"] == pytest.approx(share)
    assert metrics["unresolved_unknown"] == gone.size
    assert any(f"{gone.size} lenses have no known theta_E" in n["text"] for n in metrics["notes"])


def test_without_any_seeing_the_unresolved_share_is_null_everywhere(write_scores):
    path = write_scores(psfsize_r=pa.nulls(1200, pa.float64()))
    metrics = measured(path)
    assert metrics["unresolved_share"] is None
    assert metrics["unresolved_unknown"] == metrics["n_positive"]
    found = measure(read_scores(path), None, QUICK, lambda stage, done: None)
    cells = found.completeness[0].cells
    assert cells.n.sum() > 0
    assert np.isnan(cells.columns()["unresolved_share"]).all()
