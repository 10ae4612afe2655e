"""Checks of the science, on probe results and cells that must pass and that must fail."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ScoresError
from lenstrain.audit import outside, science
from lenstrain.audit.evidence import Supplied, parse_left_out
from lenstrain.audit.finding import NotRunError
from lenstrain.evaluation.scores import read_scores
from tests.lenstrain.audit.conftest import good_logits, make_table, write_scores

GOOD = {
    "null_injection": {"n": 10, "pixels_changed": 0, "max_abs_delta_logit": 0.0},
    "flux_matched_null": {"n": 500, "pass_rate": 0.02, "low": 0.01, "high": 0.03,
                          "base_rate": 0.01, "base_upper": 0.02},
    "arc_removal": {"drop": 0.7, "n_removed": 40},
    "core_mask": {"bright_drop": 0.8, "n_bright": 60,
                  "auroc": {"value": 0.5, "low": 0.48, "high": 0.52}},
    "annulus_only": {"bright_drop": 0.9, "n_bright": 60,
                     "auroc": {"value": 0.43, "low": 0.4, "high": 0.46}},
    "core_only": {"value": 0.98, "low": 0.97, "high": 0.99},
    "baseline": {"lead": {"auroc": {"low": 0.01, "high": 0.1}, "tpr": {"low": -0.1, "high": 0.1}}},
    "ring_probe": {"blank": {"share": 0.0, "flagged": 0, "n": 500, "upper": 0.006,
                             "mean_score": 0.01},
                   "sky": {"1": {"mean_score": 0.3, "low": 0.2}},
                   "non_lens": {"1": {"mean_score": 0.99}}},
    "attribution": {"occlusion_mass_over_area": 2.0, "gradcam_mass_over_area": 1.5},
}  # fmt: skip
BAD = {
    "null_injection": [{"pixels_changed": 3}, {"max_abs_delta_logit": 1e-3}],
    "flux_matched_null": [{"pass_rate": 0.9}],
    "arc_removal": [{"drop": 0.1}],
    "core_mask": [{"bright_drop": 0.2}],
    "annulus_only": [
        {"bright_drop": 0.4},
        {"auroc": {"value": 0.978, "low": 0.97, "high": 0.98}},
        {"auroc": {"value": 0.3, "low": 0.25, "high": 0.35}},
        {"auroc": {"value": 0.978, "low": 0.97, "high": 0.98}, "bright_drop": None},
    ],
    "baseline": [{"lead": {"auroc": {"low": -0.1, "high": 0.0}}}],
    "ring_probe": [{"sky": {"1": {"mean_score": 0.97, "low": 0.9}}}],
    "attribution": [{"occlusion_mass_over_area": 0.5}],
}
CHECKS = {
    "null_injection": science.check_null_injection,
    "flux_matched_null": science.check_flux_matched,
    "arc_removal": science.check_arc_removal,
    "core_mask": science.check_core_mask,
    "annulus_only": science.check_annulus_only,
    "core_only": science.check_core_only,
    "baseline": science.check_baseline,
    "ring_probe": science.check_ring_probe,
    "attribution": science.check_attribution,
}
FROZEN = {"name": "FPR 0.01", "threshold": 1.0, "target_fpr": 0.01, "fpr": {"value": 0.01}}


@pytest.fixture
def probed(run_evidence):
    """Evidence with probe results, some replaced."""

    def make(**changes):
        probes = {name: GOOD[name] | changes.get(name, {}) for name in GOOD}
        run_evidence.probe = {"probes": probes, "readings": {}, "threshold": {"fpr": 0.01}}
        run_evidence.evaluation = {"completeness_thresholds": [FROZEN]}
        return run_evidence

    return make


@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_finder_passes(probed, config, name):
    assert CHECKS[name](probed(), config).passed


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, cs in BAD.items() for c in cs])
def test_a_shortcut_fails(probed, config, name, change):
    assert not CHECKS[name](probed(**{name: change}), config).passed


def test_what_could_not_be_removed_is_not_run(probed, config):
    with pytest.raises(NotRunError):
        science.check_arc_removal(probed(arc_removal={"drop": None}), config)
    with pytest.raises(NotRunError):
        science.check_annulus_only(probed(annulus_only={"bright_drop": None}), config)
    with pytest.raises(NotRunError, match="baseline could not be run: one class"):
        science.check_baseline(probed(baseline={"reason": "one class."}), config)


def test_a_mean_of_few_lenses_is_no_finding(probed, config):
    few = {"drop": -0.1, "n_removed": 19}
    found = science.check_arc_removal(probed(arc_removal=few), config)
    assert (found.passed, found.measured) == (None, {"drop": -0.1, "n": 19})
    assert found.detail == "Fewer than 20 lenses say nothing."
    assert not science.check_arc_removal(probed(arc_removal=few | {"n_removed": 20}), config).passed


def test_only_a_loss_counts_where_arcs_were_removed_by_their_asymmetry(probed, config):
    gained = {"drop": -0.46, "method": "asymmetry"}
    found = science.check_arc_removal(probed(arc_removal=gained), config)
    assert found.passed is None
    assert "alike on both sides" in found.detail
    assert science.check_arc_removal(probed(arc_removal=gained | {"drop": 0.7}), config).passed
    paired = gained | {"method": "paired"}
    assert not science.check_arc_removal(probed(arc_removal=paired), config).passed


def test_without_probes_it_says_how_to_make_them(run_evidence, config):
    with pytest.raises(NotRunError, match=r"lenstrain probe .*best\.pt"):
        science.check_null_injection(run_evidence, config)


def cells(n, completeness, axes="arc_snr"):
    size = len(n)
    recovered = np.rint(np.array(n) * completeness)
    rate = recovered / n
    half = 1.96 * np.sqrt(rate * (1 - rate) / n)
    return pa.table({
        "axes": [axes] * size, "threshold": np.ones(size), "n": np.array(n),
        "arc_snr_lo": np.arange(size, dtype=float), "completeness": rate,
        "lo95": rate - half, "hi95": rate + half,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("n", "completeness", "passed"),
    [
        ([200] * 4, [0.2, 0.5, 0.8, 0.9], True),
        ([200] * 4, [0.9, 0.8, 0.5, 0.2], False),
        ([200] * 4, [0.5, 0.9, 0.6, 0.95], False),
        ([50] * 4, [0.2, 0.5, 0.8, 0.9], False),
    ],
)
def test_completeness_cells(probed, config, n, completeness, passed):
    evidence = probed()
    evidence.completeness = cells(n, completeness)
    found = science.check_completeness_cells(evidence, config)
    assert found.passed is passed
    few, falls = n[0] < 100, completeness[-1] < 0.9 or completeness[1] > completeness[2]
    assert ("wider bins" in found.remedy, "see arcs" in found.remedy) == (few, falls)
    assert found.detail.startswith("Completeness does not rise") is (falls and not few)


def test_cells_of_several_axes_are_reported_and_not_judged(probed, config):
    evidence = probed()
    fine = cells([30] * 4, [0.5] * 4, "theta_e_arcsec x psfsize_r")
    evidence.completeness = pa.concat_tables([cells([200] * 4, [0.2, 0.5, 0.8, 0.9]), fine])
    found = science.check_completeness_cells(evidence, config)
    assert found.passed
    assert found.measured["finest"] == {"axes": "theta_e_arcsec x psfsize_r", "share": 0.0}
    evidence.completeness = fine
    with pytest.raises(NotRunError, match="one axis"):
        science.check_completeness_cells(evidence, config)


def test_unresolved_share(evidence_of, config):
    assert science.check_unresolved_share(evidence_of(), config).passed
    small = {"theta_e_arcsec": lambda row: np.where(row % 2, 0.3, 0.0)}
    found = science.check_unresolved_share(evidence_of(train=small, val=small), config)
    assert not found.passed
    assert found.measured["share"] == pytest.approx(2 / 3)
    assert found.measured["unknown"] == 0


def test_lenses_of_unknown_radius_or_seeing_do_not_count_as_resolved(evidence_of, config):
    def half(row):
        return np.where(row % 4 == 1, 0.3, np.where(row % 2, np.nan, 0.0))

    found = science.check_unresolved_share(evidence_of(every={"theta_e_arcsec": half}), config)
    assert (found.measured["share"], found.measured["unknown"]) == (1.0, 90)
    assert "It is not known for 90 lenses" in found.detail
    blind = evidence_of(every={"psfsize_r": lambda row: np.full(row.size, np.nan)})
    with pytest.raises(NotRunError, match="No lens has a known theta_E and seeing"):
        science.check_unresolved_share(blind, config)


def test_an_empty_bin_does_not_hide_that_completeness_rises():
    n, value = np.array([50, 60, 0]), np.array([0.2, 0.9, np.nan])
    table = pa.table({"n": n, "arc_snr_lo": [1.0, 5.0, 20.0], "completeness": value,
                      "lo95": value - 0.1, "hi95": value + 0.1})  # fmt: skip
    assert science._rises(table) is True


def supply(evidence, **named):
    evidence.supplied = Supplied(**named)
    return evidence


def logit_table(path, logits, **columns):
    pq.write_table(pa.table({"logit": pa.array(logits, pa.float32()), **columns}), path)
    return path


@pytest.mark.parametrize(
    ("hits", "n", "passed"), [(35, 40, True), (20, 40, False), (20, 20, False)]
)
def test_real_lenses(probed, config, tmp_path, hits, n, passed):
    path = logit_table(tmp_path / "real.parquet", [2.0] * hits + [0.0] * (n - hits))
    found = outside.check_real_lenses(supply(probed(), real=path), config)
    assert found.passed is passed
    assert found.measured["recovered"] == hits


def test_confusers_blank_fields_and_artefacts(probed, config, tmp_path):
    kinds = ["spiral"] * 100 + ["ring"] * 100 + ["blank"] * 100 + ["artefact"] * 100
    logits = np.zeros(400)
    logits[:5] = 3.0
    path = logit_table(tmp_path / "c.parquet", logits, kind=kinds)
    evidence = supply(probed(), confusers=path)
    for check in (outside.check_confusers, outside.check_blank, outside.check_artefacts):
        assert check(evidence, config).passed
    assert outside.check_confusers(evidence, config).measured["kinds"]["spiral"]["share"] == 0.05
    logits[100:150], logits[200:250], logits[300:350] = 3.0, 3.0, 3.0
    logit_table(path, logits, kind=kinds)
    for check in (outside.check_confusers, outside.check_blank, outside.check_artefacts):
        assert not check(evidence, config).passed
    assert "Too many: ring" in outside.check_confusers(evidence, config).detail


def own_rows(evidence, path, found=35, **replaced):
    """Scores with real rows of the dataset's own: 40 lenses, and ten of each of five kinds."""
    kinds = ["lens"] * 40 + [
        k for k in ("spiral", "ring", "blank", "artefact", None) for _ in range(10)
    ]
    table = make_table("test", 240)
    real = len(kinds)
    logits = good_logits(table)
    logits[:40] = [2.0] * found + [0.0] * (40 - found)
    logits[40:real] = 0.0
    logits[40:45] = 2.0  # spirals
    columns = {
        "label": pa.array([1] * 40 + [0] * 50 + [i % 2 for i in range(240 - real)], pa.int8()),
        "origin": pa.array(["real"] * real + [None] * (240 - real), pa.string()),
        "kind": pa.array(kinds + [None] * (240 - real), pa.string()),
    }  # fmt: skip
    table = make_table("test", 240, **(columns | replaced))
    evidence.scores = read_scores(write_scores(path, table, logits))
    return evidence


def test_own_real_rows_are_judged_where_no_others_are_given(probed, config, tmp_path):
    evidence = own_rows(probed(), tmp_path / "s.parquet")
    lenses = outside.check_real_lenses(evidence, config)
    assert lenses.passed
    assert (lenses.measured["recovered"], lenses.measured["n"]) == (35, 40)
    assert "the 40 real ones of the dataset itself, in test" in lenses.detail
    confusers = outside.check_confusers(evidence, config)
    assert {*confusers.measured["kinds"]} == {"spiral", "ring"}
    assert "the 20 real ones of the dataset itself, in test" in confusers.detail
    assert not confusers.passed
    assert confusers.measured["kinds"]["spiral"]["flagged"] == 5
    assert {*outside.check_blank(evidence, config).measured["kinds"]} == {"blank"}
    artefacts = outside.check_artefacts(evidence, config)
    assert (artefacts.passed, {*artefacts.measured["kinds"]}) == (True, {"artefact"})


def test_what_is_given_wins_over_own_rows_and_both_are_said(probed, config, tmp_path):
    evidence = own_rows(probed(), tmp_path / "s.parquet")
    path = logit_table(tmp_path / "given.parquet", [2.0] * 50, kind=["merger"] * 50)
    evidence = supply(evidence, real=path, confusers=path)
    lenses = outside.check_real_lenses(evidence, config)
    assert lenses.measured["n"] == 50
    assert "those of --real, not the 40 real ones of the dataset itself" in lenses.detail
    confusers = outside.check_confusers(evidence, config)
    assert {*confusers.measured["kinds"]} == {"merger"}
    assert "those of --confusers, not the 50 real" in confusers.detail
    # The given table has no artefacts: the dataset's own stand in.
    assert {*outside.check_artefacts(evidence, config).measured["kinds"]} == {"artefact"}


def test_own_rows_that_were_trained_on_do_not_count(probed, config, tmp_path):
    evidence = own_rows(probed(), tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    split = pa.array(["train"] * 30 + ["test"] * 210)
    table = table.set_column(table.column_names.index("split"), "split", split)
    pq.write_table(table, tmp_path / "some.parquet")
    evidence.scores = read_scores(tmp_path / "some.parquet")
    found = outside.check_real_lenses(evidence, config)
    assert (found.passed, found.measured["n"]) == (False, 10)
    simulated = own_rows(evidence, tmp_path / "none.parquet", origin=[None] * 240)
    with pytest.raises(NotRunError, match="the scores have none of their own"):
        outside.check_real_lenses(simulated, config)


def test_blank_sky_of_the_probes_stands_in(probed, config):
    found = outside.check_blank(probed(), config)
    assert found.passed
    assert "white noise" in found.detail
    flagged = GOOD["ring_probe"]["blank"] | {"share": 0.5}
    assert not outside.check_blank(probed(ring_probe={"blank": flagged}), config).passed


@pytest.mark.parametrize(
    "check",
    [
        outside.check_confusers,
        outside.check_artefacts,
        outside.check_real_lenses,
        outside.check_leave_one_out,
    ],
)
def test_what_nobody_supplied_is_not_run(probed, config, check):
    with pytest.raises(NotRunError, match=r"--(confusers|real|left-out)"):
        check(probed(), config)


def left_out(tmp_path, evidence, other_strength):
    table = make_table("test", 1200)
    mine = write_scores(tmp_path / "mine.parquet", table, good_logits(table, 0, 6.0))
    weak = good_logits(table, 1, 6.0)
    chosen = table["theta_e_arcsec"].to_numpy() == 0.8
    weak[chosen] += other_strength - 6.0
    write_scores(tmp_path / "other.parquet", table, weak)
    supply(evidence, left_out=(f"theta_e_arcsec=0.8:{tmp_path / 'other.parquet'}",))
    evidence.scores = read_scores(mine)
    return evidence


def test_a_value_left_out_of_training_is_still_found(probed, config, tmp_path):
    found = outside.check_leave_one_out(left_out(tmp_path, probed(), 6.0), config)
    assert found.passed, found.detail


def test_a_value_that_is_not_generalised_to_fails(probed, config, tmp_path):
    found = outside.check_leave_one_out(left_out(tmp_path, probed(), 2.0), config)
    assert not found.passed
    assert found.measured["theta_e_arcsec=0.8"]["drop"] > 0.3


def test_a_value_that_no_lens_has_is_not_run(probed, config, tmp_path):
    evidence = left_out(tmp_path, probed(), 6.0)
    supply(evidence, left_out=(f"theta_e_arcsec=0.3:{tmp_path / 'other.parquet'}",))
    with pytest.raises(NotRunError, match=r"no lens with theta_e_arcsec = 0\.3"):
        outside.check_leave_one_out(evidence, config)
    supply(evidence, left_out=(f"colour=1:{tmp_path / 'other.parquet'}",))
    with pytest.raises(ScoresError, match="lacks the column colour"):
        outside.check_leave_one_out(evidence, config)
    supply(evidence, left_out=(f"theta_e_arcsec=abc:{tmp_path / 'other.parquet'}",))
    with pytest.raises(ScoresError, match=r"theta_e_arcsec=abc: .* holds numbers"):
        outside.check_leave_one_out(evidence, config)


def test_left_out_is_parsed(tmp_path):
    path = tmp_path / "a:b.parquet"
    path.touch()
    assert parse_left_out(f"lens_model=SIS:{path}") == ("lens_model", "SIS", str(path))
