"""Whether lenses and non-lenses differ in what is not shape, before and after (pure).

Three sets of numbers of a stamp that know nothing of where light lies within the core: its fluxes,
what normalisation measures, and the annulus of sky. An AUROC of 0.5 says that a set tells nothing
of the class.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lensprep.counterfactual.stamp import sky_and_flux
from lensprep.dataset.layout import SKY_NOISE_NMGY
from lensprep.dataset.normalization import MAD_TO_SIGMA, normalization_spec, normalize
from lensprep.decode.robust import median_mad

Floats = NDArray[np.float64]

FEATURES: Final = {"fluxes": slice(0, 3), "statistics": slice(3, 12), "annulus": slice(12, 18)}
"""Columns of each set in the array of `features`."""
_FOLDS = 5
_STAMP = normalization_spec("mad_stamp")
_SOFTENING = np.array([*SKY_NOISE_NMGY.values()])


def features(pixels: NDArray[np.float32]) -> Floats:
    """Numbers of stamps; shape (n, 18).

    Parameters
    ----------
    pixels : ndarray of float32, shape (n, bands, 64, 64)
        Nanomaggies.
    """
    sky, noise, flux = sky_and_flux(pixels)
    stamp = median_mad(pixels)
    median, scale = stamp.median, MAD_TO_SIGMA * stamp.mad
    stored = normalize(pixels, _STAMP, median, scale)
    clipped = (np.abs(stored) >= _STAMP.clip).mean((2, 3))
    columns = [
        np.arcsinh(flux / _SOFTENING), median / _SOFTENING, np.log(scale), clipped,
        sky / _SOFTENING, np.log(noise),
    ]  # fmt: skip
    return np.concatenate(columns, axis=1).astype(np.float64)


def separation(first: Floats, second: Floats, folds: int = _FOLDS) -> float | None:
    """AUROC of the second set of rows against the first by a linear discriminant (Fisher 1936).

    It is given ranks, since fluxes have long tails, and is cross-validated: each fold is ranked by
    the discriminant of the others.

    Parameters
    ----------
    first, second : ndarray of float64, shape (n, features)
        In no order that matters.

    Returns
    -------
    float or None
        None with fewer than 10 rows of either a fold.
    """
    if min(len(first), len(second)) < 10 * folds:
        return None
    ranks = stats.rankdata(np.concatenate([first, second]), axis=0) / (len(first) + len(second))
    sets, areas = (ranks[: len(first)], ranks[len(first) :]), []
    for fold in range(folds):
        held = [np.arange(len(rows)) % folds == fold for rows in sets]
        train = [rows[~out] for rows, out in zip(sets, held, strict=True)]
        test = [rows[out] for rows, out in zip(sets, held, strict=True)]
        within = np.cov(train[0], rowvar=False) + np.cov(train[1], rowvar=False)
        shrunk = within + 1e-6 * np.trace(within) / len(within) * np.eye(len(within))
        axis = np.linalg.solve(shrunk, train[1].mean(0) - train[0].mean(0))
        u = stats.mannwhitneyu(test[1] @ axis, test[0] @ axis).statistic
        areas.append(u / (len(test[0]) * len(test[1])))
    return float(np.mean(areas))
