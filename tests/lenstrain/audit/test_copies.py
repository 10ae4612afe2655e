"""Near-duplicates: copies with noise are found, unrelated stamps that look alike are not."""

import numpy as np
import pytest

from lensprep.dataset.layout import SKY_NOISE_NMGY
from lensprep.dataset.normalization import MODES, band_statistics, normalization_spec, normalize
from lenstrain.audit import copies
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError
from tests.lenstrain.audit.conftest import make_dataset, make_pixels, make_table

SPLITS = ("train", "test")


@pytest.fixture
def evidence(tmp_path):
    def make(change=None):
        tables = {split: make_table(split, 120) for split in SPLITS}
        pixels = {s: make_pixels(tables[s]["label"].to_numpy(), i) for i, s in enumerate(SPLITS)}
        if change is not None:
            change(pixels)
        return Evidence(tmp_path / "run", make_dataset(tmp_path / "ds", tables, 50, pixels))

    return make


def plant(noise, turn=0, shift=0):
    def change(pixels):
        source = pixels["train"][:10].astype(np.float32)
        copy = np.roll(np.rot90(source, turn, axes=(-2, -1)), shift, axis=-1)
        more = np.random.default_rng(9).normal(0, noise, copy.shape)
        pixels["test"][:10] = (copy + more).astype(np.float16)

    return change


def test_unrelated_stamps_pass(evidence, config):
    found = copies.check_near_duplicates(evidence(), config)
    assert found.passed
    assert found.measured["looked_at"] == {"train": 120, "test": 120}


@pytest.mark.parametrize(("noise", "turn"), [(0.01, 0), (1.0, 0), (1.0, 3), (1.4, 1)])
def test_copies_with_noise_are_found(evidence, config, noise, turn):
    found = copies.check_near_duplicates(evidence(plant(noise, turn)), config)
    assert not found.passed
    assert found.measured["pairs"] == {"train-test": 10}
    keys = {make_table("train", 120)["key"][i].as_py() for i in range(10)}
    assert {worst[0] for worst in found.measured["worst"]} <= keys


@pytest.mark.parametrize(
    ("mode", "noise", "height"),
    [*((mode, 1.0, 0.0) for mode in MODES), ("asinh_survey", 10.0, 0.0), ("asinh_survey", 1.0, 30)],
)
def test_copies_are_found_whatever_the_normalisation(tmp_path, config, mode, noise, height):
    """Sky with `noise` softenings of noise and at a height of so many, and copies as noisy."""
    rng, spec = np.random.default_rng(0), normalization_spec(mode)
    unit = np.array([SKY_NOISE_NMGY[band] for band in "grz"])[:, None, None]
    tables = {split: make_table(split, 120) for split in SPLITS}
    flux = {split: rng.standard_normal((120, 3, 64, 64)) for split in SPLITS}
    flux["test"][:10] = flux["train"][:10] + rng.standard_normal((10, 3, 64, 64))
    pixels = {}
    for split, values in flux.items():
        true = (unit * (noise * values + height)).astype(np.float32)
        pixels[split] = normalize(true, spec, *band_statistics(true, spec))
    dataset = make_dataset(tmp_path / "ds", tables, 50, pixels, spec)
    found = copies.check_near_duplicates(Evidence(tmp_path / "run", dataset), config)
    assert found.measured["pairs"] == {"train-test": 10}
    assert found.measured["without_noise"] == {"train": 0, "test": 0}


def test_stamps_without_noise_are_told(evidence, config):
    def empty(rows):
        def change(pixels):
            pixels["test"][:rows] = 1.0

        return change

    found = copies.check_near_duplicates(evidence(empty(7)), config)
    assert found.measured["without_noise"] == {"train": 0, "test": 7}
    assert "7 stamps could not be compared" in found.detail


def test_a_split_without_any_noise_is_not_run(evidence, config):
    def change(pixels):
        pixels["test"][:] = 1.0

    with pytest.raises(NotRunError, match="nothing to compare"):
        copies.check_near_duplicates(evidence(change), config)


def test_what_cannot_be_found_is_told_and_not_guessed(evidence, config):
    found = copies.check_near_duplicates(evidence(plant(0.0, shift=3)), config)
    assert found.passed
    assert "shifted" in found.detail


def test_alike_neighbours_and_gradients_are_no_copies(evidence, config):
    """The same bright disc and slope in all stamps, each with its own noise."""

    def change(pixels):
        y, x = np.mgrid[:64, :64]
        disc = 2.5 * np.exp(-((x - 52) ** 2 + (y - 50) ** 2) / 60)
        for part in pixels.values():
            part += (disc + 0.02 * (x - 32)).astype(np.float16)

    assert copies.check_near_duplicates(evidence(change), config).passed


def test_one_quarter_alone_makes_no_copy():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 3, 64, 64)).astype(np.float32)
    two[:, :32, :32] = one[:, :32, :32]
    assert copies.same_noise(one, two) == 0.0
    assert copies.same_noise(one, one) == pytest.approx(1.0)
