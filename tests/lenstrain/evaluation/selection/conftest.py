"""Injections with a known selection function, in regions with offsets of their own."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import special

from lenstrain.evaluation.operating import FrozenThreshold
from lenstrain.evaluation.scores import read_scores
from lenstrain.evaluation.selection.axes import make_axis, make_terms, with_bins
from lenstrain.evaluation.selection.fit import count_lenses, fit_selection
from lenstrain.evaluation.selection.function import SelectionFunction, count_support

NAMES = ("theta_e_arcsec", "psfsize_r", "arc_snr", "src_dmag")
ICC = 0.1
SPREAD = np.sqrt(ICC / (1 - ICC) * np.pi**2 / 3)
"""Standard deviation of the regions' offsets, on the logit."""


class Injections(NamedTuple):
    values: np.ndarray
    found: np.ndarray
    region: np.ndarray


def logit_truth(values):
    """Logit of being found in a region without offset: steep in theta_E over seeing, and there in
    arc S/N. No sum of surfaces over two axes can equal it."""
    theta, seeing, snr, dmag = values.T
    resolved = special.expit(4 * (theta / seeing - 0.6))
    brightness = 2.2 * np.log1p(snr) * resolved - 0.6 * (dmag - 1)
    return 4 * np.log(theta / seeing + 0.15) + brightness + 1.2 * theta - 3.5


def truth(values):
    """C over all regions: what a fit should recover."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    shares = special.expit(logit_truth(values)[:, None] + SPREAD * nodes)
    return shares @ weights / weights.sum()


def inject(n=20_000, regions=60, seed=0):
    """Injections on the survey's grid of theta_E and source magnitude; seeing goes by region."""
    rng = np.random.default_rng(seed)
    region = rng.choice(regions, n, p=rng.dirichlet(np.full(regions, 5.0)))
    region = np.unique(region, return_inverse=True)[1]
    theta = rng.choice([0.3, 0.6, 1.0, 1.5, 2.0, 2.5], n)
    seeing = np.clip(rng.normal(1.3, 0.15, regions)[region] + rng.normal(0, 0.05, n), 0.8, 1.7)
    dmag = rng.choice([1.0, 2.0], n)
    snr = np.exp(rng.normal(2.5 - 0.5 * (dmag - 1), 1.0, n))
    values = np.stack([theta, seeing, snr, dmag], axis=1)
    offset = rng.normal(0, SPREAD, regions)[region]
    found = rng.random(n) < special.expit(logit_truth(values) + offset)
    return Injections(values, found, region)


def fitted(injections, names=NAMES, resamples=50, least=5, free=()):
    values, found, region = injections
    axes = [make_axis(name, c, name in free) for name, c in zip(names, values.T, strict=True)]
    coordinates = np.stack([a.coordinate(c) for a, c in zip(axes, values.T, strict=True)], axis=1)
    axes = with_bins(axes, coordinates, 20)
    terms = make_terms(axes)
    lenses = count_lenses(axes, coordinates, found, region)
    fit = fit_selection(terms, lenses, resamples, 0)
    return SelectionFunction(terms, fit, count_support(axes, coordinates, found, least))


def as_scores(injections, folder, name="scores.parquet", **replaced):
    """A table of scores in which what is found has logit 1 and what is not -1, with controls."""
    n, controls = len(injections.found), 40
    zeros = np.zeros(controls)
    columns = {
        "key": [str(i) for i in range(n + controls)],
        "label": np.concatenate([np.ones(n), zeros]).astype(np.int8),
        "logit": np.concatenate([np.where(injections.found, 1.0, -1.0), zeros - 2]),
        "region_id": np.concatenate([injections.region, zeros]).astype(np.int32),
    }
    columns |= {
        axis: np.concatenate([values, zeros])
        for axis, values in zip(NAMES, injections.values.T, strict=True)
    }
    columns |= replaced
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table, folder / name)
    return read_scores(folder / name)


def given_cut(value=0.5):
    return [FrozenThreshold(name=f"logit {value:g}", kind="given", threshold=value)]
