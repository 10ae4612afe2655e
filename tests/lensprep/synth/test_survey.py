"""The sky: real brick names, whole regions, the published seeing and depth."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from lensprep.errors import ConfigError
from lensprep.synth.hosts import draw_host
from lensprep.synth.priors import PRIORS
from lensprep.synth.survey import bad_fractions, brick_at, is_lens, plan_survey


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [  # positions and bricks of public DR10 cutouts
        (0.10618843, -3.95577168, "0001m040"),
        (0.06109889, -5.95079136, "0001m060"),
        (0.26156697, -37.3242722, "0001m372"),
        (0.25441706, -0.5578507, "0003m005"),
        (0.69431657, 27.0893707, "0006p270"),
        (359.855712, -3.0493190, "3598m030"),
    ],
)
def test_brick_names_are_those_of_the_legacy_surveys(ra, dec, name):
    found, (ra_low, ra_high), (dec_low, dec_high) = brick_at(ra, dec)
    assert found == name
    assert ra_low <= ra < ra_high
    assert dec_low <= dec < dec_high


@pytest.mark.parametrize("rows", [3, 10, 100, 1000, 20_000])
def test_every_row_has_a_place_and_every_split_a_region(rows):
    plan = plan_survey(rows, seed=5)
    counts = {split: len(plan.rows_of(split)) for split in ("train", "val", "test")}
    assert sum(counts.values()) == rows
    assert min(counts.values()) > 0


@pytest.mark.parametrize("rows", [200, 5_000, 25_000])
def test_default_split_is_60_15_25_with_regions_enough_to_resample(rows):
    plan = plan_survey(rows, seed=1)
    regions = list(plan.region_split.values())
    assert regions.count("test") >= 10
    assert len(plan.rows_of("train")) / rows == pytest.approx(0.60, abs=0.02)
    assert len(plan.rows_of("test")) / rows == pytest.approx(0.25, abs=0.02)


def test_split_fractions_are_followed():
    plan = plan_survey(20_000, seed=1, fractions={"train": 26, "val": 39, "test": 35})
    assert len(plan.rows_of("val")) / 20_000 == pytest.approx(0.39, abs=0.02)


def test_regions_lie_apart():
    plan = plan_survey(40_000, seed=2)
    ra = np.radians([np.mean(brick.ra_deg) for brick in plan.bricks])
    dec = np.radians([np.mean(brick.dec_deg) for brick in plan.bricks])
    region = np.array([brick.region_id for brick in plan.bricks])
    xyz = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    apart = np.degrees(np.arccos(np.clip(xyz @ xyz.T, -1, 1)))
    assert apart[region[:, None] != region].min() > 0.6
    assert len({brick.name for brick in plan.bricks}) == len(plan.bricks)


def test_seeing_and_depth_are_as_published():
    bricks = plan_survey(100_000, seed=3).bricks
    size = np.array([brick.psfsize_arcsec[1] for brick in bricks])
    depth = np.array([brick.psfdepth_mag[1] for brick in bricks])
    assert 0.754 <= size.min() <= size.max() <= 1.600
    assert np.median(size) == pytest.approx(1.305, abs=0.04)
    assert 23.60 <= depth.min() <= depth.max() <= 26.84
    assert np.median(depth) == pytest.approx(24.55, abs=0.12)
    assert np.mean([brick.psfsize_arcsec[0] for brick in bricks]) == pytest.approx(1.531, abs=0.05)


def test_bins_are_quartiles():
    bricks = plan_survey(20_000, seed=3).bricks
    for name in ("psf_bin", "depth_bin"):
        counts = np.bincount([getattr(brick, name) for brick in bricks], minlength=4)
        assert np.ptp(counts) <= 1
        assert len(counts) == 4


def test_masked_fractions_are_as_published():
    rng = np.random.default_rng(0)
    bad, wise = np.array([bad_fractions(rng) for _ in range(20_000)]).T
    assert np.median(bad) == 0.0
    assert bad.mean() == pytest.approx(0.064, abs=0.02)
    assert np.quantile(bad, 0.95) == pytest.approx(0.51, abs=0.1)
    assert wise.mean() == pytest.approx(0.039, abs=0.015)
    assert 0 <= min(bad.min(), wise.min()) <= max(bad.max(), wise.max()) <= 1


@pytest.mark.parametrize("priors", PRIORS.values(), ids=list(PRIORS))
def test_both_classes_have_the_same_hosts(priors):
    """The label is a hash of the name: brightness, colour and shape of hosts cannot tell it."""
    rng = np.random.default_rng(11)
    hosts = [draw_host(rng, 0.04, priors) for _ in range(4000)]
    lens = np.array([is_lens(11, f"0001m040_{i}") for i in range(len(hosts))])
    assert lens.mean() == pytest.approx(0.5, abs=0.03)
    for value in (
        lambda host: host.r_mag,
        lambda host: sum(flux[0] for _, flux in host.parts) / host.flux_r,
        lambda host: host.parts[0][0].radius_px,
    ):
        values = np.array([value(host) for host in hosts])
        assert ks_2samp(values[lens], values[~lens]).pvalue > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 2}, "at least 3 rows"),
        ({"rows": 10, "regions": 2}, "3 to 10"),
        ({"rows": 10, "regions": 11}, "3 to 10"),
        ({"rows": 10_000, "regions": 783}, "3 to 782"),
        ({"rows": 10, "fractions": {"train": 1, "val": 0, "test": 1}}, "above 0"),
        ({"rows": 10, "fractions": {"train": 1, "test": 1}}, "train, val and test"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_survey(seed=1, **arguments)
