"""A dataset with everything that probes read, and finders whose shortcuts are known."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from lensprep.dataset import DECALS, Geometry, NormalizationSpec
from lensprep.decode.normalize import Normalizer
from lenstrain.probes.sample import Sample, colour_columns

SPEC = NormalizationSpec(mode="mad_stamp", clip=10.0)


def other_survey(name, bands, side, scale, reference):
    """Stamps of another survey than DECaLS, in the units of its flux."""
    return Geometry(
        survey=name, bands=tuple(bands), side=side, pixel_scale_arcsec=scale,
        reference_band=reference, zero_point=22.5, sky_noise=(0.01,) * len(bands),
    )  # fmt: skip


VIS = other_survey("euclid_vis", ["vis"], 101, 0.1, "vis")
RUBIN = other_survey("rubin", "ugrizy", 48, 0.2, "i")


def raw_stamps(labels, seed=0, geometry=DECALS):
    """Flux: noise, a round host, and one arc on the left for each lens, alike in arcsec."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: geometry.side, : geometry.side] - (geometry.side - 1) / 2
    y, x = (axis * (geometry.pixel_scale_arcsec / 0.262) for axis in (y, x))
    pixels = rng.normal(0, 0.01, (len(labels), *geometry.shape))
    pixels += 0.03 * np.exp(-(x**2 + y**2) / 20)
    arc = 0.06 * np.exp(-(((np.hypot(x, y) - 7) / 1.5) ** 2)) * (x < -3)
    pixels[labels == 1] += arc
    return pixels.astype(np.float32), float(arc.sum())


def make_sample(n=60, seed=0, spec=SPEC, geometry=DECALS):
    labels = (np.arange(n) % 2).astype(np.int8)
    raw, flux = raw_stamps(labels, seed, geometry)
    stored = np.empty(raw.shape, np.float16)
    measured = Normalizer(spec, geometry)(raw, stored)
    lens = labels == 1
    rng = np.random.default_rng(seed)
    columns = {
        "key": [f"{i:032x}" for i in range(n)],
        "label": pa.array(labels, pa.int8()),
        "region_id": pa.array(np.arange(n) // 6, pa.int32()),
        "ra": rng.uniform(0, 360, n),
        "dec": rng.uniform(-60, 30, n),
        "psfsize_r": rng.uniform(1.1, 1.4, n),
        "psfdepth_r": rng.uniform(23.8, 24.4, n),
        "theta_e_arcsec": np.where(lens, 7 * 0.262, 0.0),
        "arc_snr": pa.array(np.where(lens, 30.0, np.nan), from_pandas=True),
        "total_injected_flux_r": pa.array(np.where(lens, flux, np.nan), from_pandas=True),
        "src_x_arcsec": np.where(lens, 0.2, 0.0),
        "src_y_arcsec": np.zeros(n),
        "src_reff_arcsec": np.where(lens, 0.15, 0.0),
        **{name: np.zeros(n) for name in colour_columns(geometry)},
    }
    for number, band in enumerate(geometry.bands):
        fwhm = 1.5 if band == "g" else 1.3
        columns[f"psf_fwhm_used_{band}"] = pa.array(np.where(lens, fwhm, np.nan), from_pandas=True)
        columns[f"median_{band}"] = measured.median[:, number]
        columns[f"scale_{band}"] = measured.scale[:, number]
    return Sample(stored, labels, pa.table(columns), spec, "val", geometry)


class Sees(nn.Module):
    """A finder that adds up the stored pixels of a part of the stamp, over or under a level."""

    def __init__(self, mask, level):
        super().__init__()
        self.register_buffer("mask", torch.as_tensor(mask, dtype=torch.float32))
        self.level = level
        self.last = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.last.weight)

    def forward(self, x_BCHW):
        return self.last((x_BCHW.mean(1) * self.mask)[:, None]).sum((1, 2, 3)) - self.level


def sky_distance():
    y, x = np.mgrid[:64, :64] - 31.5
    return np.hypot(y, x), x


@pytest.fixture(scope="session")
def sample():
    return make_sample()


@pytest.fixture
def arc_finder():
    """Sees the left half of a ring only: what is there beyond the right half."""
    distance, x = sky_distance()
    ring = np.abs(distance - 7) < 3
    return Sees(ring * np.where(x < -3, 1.0, np.where(x > 3, -1.0, 0.0)), 150.0).eval()


@pytest.fixture
def flux_finder():
    """Adds up all light within 12 pixels."""
    distance, _ = sky_distance()
    return Sees((distance < 12) * 1.0, 280.0).eval()
