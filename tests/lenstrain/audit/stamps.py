"""Small stamps in flux with hosts, arcs and noise, normalised as conversion does."""

import numpy as np
import pyarrow as pa

from lensprep.dataset.normalization import band_statistics, normalize, radius_px
from lenstrain.probes.sources import ring
from tests.lenstrain.audit.conftest import SPEC, make_dataset, make_table

ROWS = 480
SIGMA = np.array([0.01, 0.02, 0.04])
"""Noise of a pixel in g, r, z, nanomaggies."""
PER_REGION = 40


def make_flux(labels, rng, arc=2.0, spread=0.5):
    """Gaussian hosts of scattered brightness on noise; a lens has a ring of flux `arc`."""
    host = np.exp(-0.5 * (radius_px() / 3.0) ** 2)
    light = np.exp(rng.normal(0.0, spread, len(labels)))[:, None, None, None] * host
    flux = light * SIGMA[:, None, None] * 20
    flux += rng.standard_normal((len(labels), 3, 64, 64)) * SIGMA[:, None, None]
    flux += np.where(labels == 1, arc, 0.0)[:, None, None, None] * ring(4.0, 2.0)
    return flux.astype(np.float32)


def make_stamps(change=None, splits=("train",), rows=ROWS, seed=0, select=None, spec=SPEC):
    """Pixels and tables by split; `change` makes other flux of (flux, labels, rng).

    Where all stamps of a place were alike, `select` says from (flux, labels) which are kept.
    """
    made = {}
    for number, split in enumerate(splits):
        rng = np.random.default_rng([seed, number])
        table = make_table(split, rows, seed)
        labels = table["label"].to_numpy()
        flux = make_flux(labels, rng)
        if change is not None:
            flux = change(flux, labels, rng).astype(np.float32)
        kept = np.ones(rows, bool) if select is None else select(flux, labels)
        median, scale = band_statistics(flux, spec)
        lens = labels == 1
        columns = {
            "region_id": number * 1000 + np.arange(rows) // PER_REGION,
            "brickname": [f"b{number}-{i // PER_REGION}" for i in range(rows)],
            "theta_e_arcsec": np.where(lens, 4.0 * 0.262, 0.0),
            "total_injected_flux_r": np.where(lens, 2.0, np.nan),
            **{name: np.where(lens, 0.0, np.nan) for name in
               ("src_gr", "src_rz", "src_x_arcsec", "src_y_arcsec", "src_reff_arcsec")},
            **{f"psf_fwhm_used_{b}": np.where(lens, 1.23, np.nan) for b in "grz"},
            "psfsize_r": np.full(rows, 1.23),
            **{f"median_{b}": median[:, i] for i, b in enumerate("grz")},
            **{f"scale_{b}": scale[:, i] for i, b in enumerate("grz")},
        }  # fmt: skip
        for name, values in columns.items():
            column = pa.array(values, from_pandas=True)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, column)
            else:
                table = table.append_column(name, column)
        pixels = normalize(flux, spec, median, scale)
        made[split] = (pixels[kept], table.filter(pa.array(kept)))
    return made


def write_stamps(folder, made, spec=SPEC):
    """A dataset of them."""
    return make_dataset(folder, {split: table for split, (_, table) in made.items()}, 200,
                        {split: pixels for split, (pixels, _) in made.items()}, spec)  # fmt: skip
