"""What a measurement says of awkward tables, before anything is drawn or written."""

import numpy as np
import pyarrow as pa
import pytest

from lenstrain.evaluation.evaluate import EvaluationOptions
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.plainjson import plain
from lenstrain.evaluation.scores import read_scores

from .conftest import make_table

# Few draws: these tests are about what is said, not about precision.
QUICK = EvaluationOptions(
    resamples=60, completeness_axes=(("theta_e_arcsec",), ("theta_e_arcsec", "psfsize_r"))
)


def measured(path, reference=None, options=QUICK):
    other = None if reference is None else read_scores(reference)
    found = measure(read_scores(path), other, options, lambda stage, done: None)
    return plain(found.entries)


def test_without_another_split_nothing_is_guaranteed(write_scores):
    metrics = measured(write_scores())
    assert not any(choice["guaranteed"] for choice in metrics["thresholds"])
    assert metrics["calibrated"] is None
    assert any("--calibrate-on" in note["text"] for note in metrics["notes"])


def test_calibrating_on_the_same_stamps_is_noted(write_scores):
    path = write_scores()
    metrics = measured(path, path)
    assert any(
        "1,200 stamps are in the calibration scores too" in n["text"] for n in metrics["notes"]
    )


def test_a_tie_block_at_the_threshold_is_named(write_scores):
    table = make_table(rows=400, theta_e_arcsec=None)
    logits = table["logit"].to_numpy().copy()
    logits[np.argsort(logits)[-280:]] = 5.0  # as a float32 sigmoid would do
    metrics = measured(write_scores(rows=400, theta_e_arcsec=None, logit=logits))
    assert metrics["largest_tie"]["rows"] == 280
    texts = " ".join(note["text"] for note in metrics["notes"])
    assert "280 rows (70.0%) share the score 5" in texts
    assert "280 rows are tied at the threshold of FPR 0.01" in texts
    assert metrics["tpr_at_fpr"]["0.01"]["value"] == 0.0


def test_an_empty_stratum_has_a_reason_not_a_number(write_scores):
    table = make_table(rows=600)
    psf = np.where(table["label"].to_numpy() == 1, 1.2, 1.4)  # a class in each bin
    metrics = measured(write_scores(rows=600, psfsize_r=psf))
    low, high = metrics["strata"]["psfsize_r"]
    assert low["fpr"]["value"] is None
    assert low["fpr"]["reason"] == "no row in this stratum"
    assert high["tpr"]["value"] is None
    assert low["auroc"]["reason"] == "one class only in this stratum"


def test_one_region_has_no_interval(write_scores):
    metrics = measured(write_scores(regions=1))
    assert metrics["auroc"]["low"] is None
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


def test_a_calibration_without_an_optimum_is_not_applied(write_scores):
    labels = make_table()["label"].to_numpy()
    apart = write_scores("apart.parquet", logit=10.0 * labels - 5)
    metrics = measured(write_scores(), apart)
    assert metrics["calibration"]["at_bound"] is True
    assert metrics["calibrated"] is None
    assert any("no map is applied" in note["text"] for note in metrics["notes"])


def test_perfect_ranks_do_not_pass_for_certainty(write_scores):
    labels = make_table()["label"].to_numpy()
    metrics = measured(write_scores(logit=10.0 * labels - 5 + np.arange(1200) / 1e3))
    assert metrics["auroc"]["value"] == 1.0
    assert any("Every draw gives the same AUROC" in note["text"] for note in metrics["notes"])
    rate = metrics["tpr_at_fpr"]["0.01"]
    assert (rate["value"], rate["method"]) == (1.0, "wilson")
    assert 0.99 < rate["low"] < 1.0


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
