"""Each diagnosis with records that must give it and records that must not."""

import math
import random

import pytest

from lenstrain.monitor.diagnosis import Diagnosis, History, diagnose


def intervals(losses, **columns):
    """One line an interval of 50 steps; further columns are one value or one a line."""
    lines = []
    for number, loss in enumerate(losses):
        line = {"kind": "interval", "step": 50 * (number + 1), "loss": loss, "lr": 3e-4,
                "grad_norm": 0.5, "clipped_share": 0.0, "skipped_updates": 0.0,
                "samples_per_s": 900.0, "data_wait_share": 0.01}  # fmt: skip
        for name, value in columns.items():
            line[name] = value[number] if isinstance(value, list) else value
        lines.append(line)
    return lines


def epochs(train, nll, auroc):
    return [
        {"kind": "epoch", "step": 500 * n, "epoch": n, "train_loss": t, "nll": v, "auroc": a}
        for n, (t, v, a) in enumerate(zip(train, nll, auroc, strict=True), 1)
    ]


def found(**records) -> dict[str, Diagnosis]:
    return {finding.name: finding for finding in diagnose(History(**records))}


def noisy(level, count, noise=0.1, seed=0):
    rng = random.Random(seed)
    return [level * (1 + noise * rng.gauss(0, 1)) for _ in range(count)]


FALLING = [0.7 * math.exp(-n / 15) + 0.1 for n in range(40)]
HEALTHY = {
    "intervals": intervals([x * e for x, e in zip(FALLING, noisy(1, 40, 0.05), strict=True)]),
    "epochs": epochs(
        [0.6, 0.45, 0.35, 0.3, 0.27, 0.25], [0.62, 0.48, 0.4, 0.36, 0.34, 0.33],
        [0.7, 0.8, 0.86, 0.9, 0.92, 0.93],
    ),
}  # fmt: skip


def with_light(passed, found):
    some = HEALTHY["epochs"][: len(passed)]
    return [record | {"counterfactual_pass": light, "tpr_at_fpr": rate, "pair_auroc": 0.7}
            for record, light, rate in zip(some, passed, found, strict=True)]  # fmt: skip


def test_a_finder_that_passes_light_nearly_as_often_as_lenses_sees_light():
    blind = with_light([0.1, 0.3, 0.4, 0.48], [0.5, 0.4, 0.5, 0.6])
    finding = found(epochs=blind)["sees light"]
    assert "60 % of the lenses pass, and 48 % of the counterfactuals" in finding.evidence
    assert "0.80 times as many" in finding.evidence
    where = 'data.where="label == 0 or theta_e_arcsec >= 0.5 * psfsize_r"'
    assert f"data.counterfactual_share=0.9 and {where}" in finding.action
    trained = found(epochs=blind, counterfactual_share=0.3)["sees light"]
    assert "a larger data.counterfactual_share" in trained.action
    assert where in trained.action
    assert "sees light" not in found(epochs=blind[:3])  # it did not in the first of these


def test_a_finder_that_passes_little_light_is_not_said_to_see_it():
    assert "sees light" not in found(epochs=with_light([0.3, 0.3], [0.4, 0.4]))
    better = with_light([0.3, 0.3, 0.14], [0.4, 0.4, 0.4])  # 0.35 of the completeness at last
    assert "sees light" not in found(epochs=better)
    nothing = with_light([0.0] * 3, [0.0] * 3)  # no threshold lets anything pass
    assert "sees light" not in found(epochs=nothing)
    unknown = with_light([0.3] * 3, [0.4, 0.4, None])
    assert "sees light" not in found(epochs=unknown)


def test_a_healthy_run_converges_and_nothing_else():
    assert set(found(**HEALTHY)) == {"converges"}


def test_a_healthy_run_in_its_first_epoch_converges_too():
    assert set(found(intervals=intervals(FALLING))) == {"converges"}


def test_a_metric_at_its_ceiling_converges_while_the_validation_nll_falls():
    train, top = [0.5, 0.4, 0.35, 0.3, 0.25, 0.2], [0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert set(found(epochs=epochs(train, train, top))) == {"converges"}
    still = [0.5, 0.4, 0.41, 0.405, 0.41, 0.405]
    assert set(found(epochs=epochs(train, still, top))) == {"unclear"}


def test_a_finished_run_is_not_told_to_go_on():
    assert "Let it run" not in found(**HEALTHY, over=True)["converges"].action


def test_few_records_are_too_early_and_none_are_no_error():
    assert set(found()) == {"too early"}
    assert set(found(intervals=intervals([0.7, 0.69, 0.71]))) == {"too early"}


@pytest.mark.parametrize(
    "losses", [[*FALLING, 0.3, 0.5, 0.8, 1.2, 1.7, 2.0, 2.5], [*FALLING, *noisy(0.69, 10)]]
)
def test_a_loss_that_rises_for_good_diverges(losses):
    finding = found(intervals=intervals(losses))["diverges"]
    assert finding.severity == "bad"
    assert "optim.lr" in finding.action
    assert "rose from 0.1" in finding.evidence


@pytest.mark.parametrize(
    "losses",
    [
        noisy(0.7, 60),  # flat and noisy
        noisy(0.02, 60, noise=0.6),  # nearly nothing left, so that noise is large beside it
        [*FALLING, 2.5, *FALLING[-5:]],  # one bad batch
        FALLING,
    ],
)
def test_noise_and_a_single_spike_do_not_diverge(losses):
    assert "diverges" not in found(intervals=intervals(losses))


def test_a_loss_that_is_not_finite_diverges_at_once():
    assert "NaN" in found(intervals=intervals([0.7, None]))["diverges"].evidence
    assert "nonfinite.json" in found(nonfinite=True)["diverges"].action


def test_a_finder_at_chance_after_three_epochs_learns_nothing():
    records = epochs([0.69, 0.69, 0.69], [0.69, 0.69, 0.7], [0.49, 0.51, 0.53])
    assert found(epochs=records)["learns nothing"].severity == "bad"
    assert "learns nothing" not in found(epochs=records[:2])
    better = epochs([0.69, 0.69, 0.68], [0.69, 0.69, 0.68], [0.49, 0.51, 0.62])
    assert "learns nothing" not in found(epochs=better)


TRAIN = [0.6, 0.4, 0.3, 0.2, 0.12, 0.08]


def test_a_validation_loss_that_turns_while_training_falls_overfits():
    records = epochs(TRAIN, [0.6, 0.45, 0.4, 0.44, 0.5, 0.6], [0.7, 0.8, 0.9, 0.89, 0.88, 0.87])
    finding = found(epochs=records)["overfits"]
    assert "0.4000 in epoch 3" in finding.evidence
    assert "Stop" in finding.action
    assert "overfits" not in found(epochs=records, counterfactual_share=0.9)


def test_an_overfitting_loss_with_a_metric_that_gains_asks_for_calibration():
    records = epochs(TRAIN, [0.6, 0.45, 0.4, 0.44, 0.5, 0.6], [0.7, 0.8, 0.9, 0.91, 0.92, 0.93])
    assert "calibrate" in found(epochs=records)["overfits"].action
    assert "Stop" in found(epochs=records, monitor="nll")["overfits"].action


@pytest.mark.parametrize(
    ("train", "nll"),
    [
        (TRAIN, [0.6, 0.45, 0.4, 0.405, 0.4, 0.403]),  # within the noise of a validation
        (TRAIN, [0.6, 0.45, 0.42, 0.41, 0.4, 0.6]),  # one bad epoch
        ([0.6, 0.4, 0.3, 0.31, 0.33, 0.36], [0.6, 0.45, 0.4, 0.44, 0.5, 0.6]),  # both rise
    ],
)
def test_what_is_not_a_turn_of_validation_alone_does_not_overfit(train, nll):
    assert "overfits" not in found(epochs=epochs(train, nll, [0.7, 0.8, 0.9, 0.9, 0.9, 0.9]))


STILL = epochs([0.5, 0.4, 0.31, 0.31, 0.309, 0.31], [0.5, 0.4, 0.35, 0.35, 0.351, 0.35],
               [0.7, 0.8, 0.9, 0.899, 0.898, 0.899])  # fmt: skip


def test_nothing_moving_at_a_high_rate_is_a_plateau_and_at_a_low_one_the_end():
    high, low = intervals([0.3] * 3, lr=2e-4), intervals([0.3] * 3, lr=2e-6)
    assert found(epochs=STILL, intervals=high)["plateau"].severity == "warn"
    assert "plateau" not in found(epochs=STILL, intervals=low)
    assert found(epochs=STILL, intervals=low)["converged"].severity == "good"


def test_a_loss_that_falls_or_a_metric_that_gains_is_no_plateau():
    falls = epochs([0.5, 0.4, 0.35, 0.33, 0.31, 0.29], [0.4] * 6,
                   [0.7, 0.8, 0.9, 0.899, 0.898, 0.899])  # fmt: skip
    gains = epochs([0.31] * 6, [0.4] * 6, [0.7, 0.8, 0.9, 0.901, 0.902, 0.903])
    assert not {"plateau", "converged"} & set(found(epochs=falls))
    assert not {"plateau", "converged"} & set(found(epochs=gains))


@pytest.mark.parametrize(
    ("share", "severity"),
    [(0.5, "bad"), (0.2, "warn"), (0.05, None), ([0.9] * 2 + [0.0] * 8, None)],
)
def test_waiting_for_data_starves_unless_it_was_the_start_only(share, severity):
    records = intervals([0.5] * 10, data_wait_share=share)
    finding = found(intervals=records).get("starved")
    assert (finding and finding.severity) == severity


def test_the_start_of_a_short_run_does_not_starve():
    shares = [0.9, 0.3, 0.05, 0.02]
    assert "starved" not in found(intervals=intervals([0.5] * 4, data_wait_share=shares))
    assert "starved" not in found(intervals=intervals([0.5] * 3, data_wait_share=0.9))
    assert "starved" in found(intervals=intervals([0.5] * 4, data_wait_share=0.9))


def test_clipping_counts_after_the_warm_up_only():
    always = intervals([0.5] * 10, clipped_share=0.3, grad_norm=1.4)
    early = intervals([0.5] * 10, clipped_share=[1.0] * 4 + [0.02] * 6)
    assert "30 %" in found(intervals=always)["clipped"].evidence
    assert "1.4" in found(intervals=always)["clipped"].evidence
    assert "clipped" not in found(intervals=early, warmup_steps=200)
    assert "clipped" in found(intervals=early, warmup_steps=0)
    assert "clipped" not in found(intervals=intervals([0.5] * 10, clipped_share=0.05))
    assert "clipped" not in found(intervals=always, clip_norm=0.0)


def test_updates_skipped_again_and_again_are_told_and_the_first_ones_are_not():
    often = intervals([0.5] * 10, skipped_updates=5.0)
    scaling = intervals([0.5] * 10, skipped_updates=[5.0] + [0.0] * 9)
    assert "10.0 %" in found(intervals=often)["skipped updates"].evidence
    assert "skipped updates" not in found(intervals=scaling)


def test_the_worst_comes_first():
    records = intervals([*FALLING, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], data_wait_share=0.2)
    names = [finding.name for finding in diagnose(History(intervals=records))]
    assert names == ["diverges", "starved"]
