"""The stamps that probes look at: some of each class, each image once, and their columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Dataset, Geometry, NormalizationSpec
from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.sidecar import is_counterfactual, read_statistics
from lensprep.errors import DatasetError

_NEEDED = ("key", "label", "region_id")
_WANTED = (
    COUNTERFACTUAL,
    "pixel_hash",
    "ra",
    "dec",
    "psfsize_r",
    "psfdepth_r",
    "theta_e_arcsec",
    "arc_snr",
    "total_injected_flux_r",
    "src_x_arcsec",
    "src_y_arcsec",
    "src_reff_arcsec",
)


def colour_columns(geometry: Geometry) -> tuple[str, ...]:
    """Columns with the colours of a lensed source between adjacent bands, magnitudes."""
    return tuple(f"src_{blue}{red}" for blue, red in pairwise(geometry.bands))


def psf_column(geometry: Geometry) -> str:
    """Column with the PSF FWHM in the reference band that a source was injected behind."""
    return f"psf_fwhm_used_{geometry.reference_band}"


@dataclass(frozen=True)
class Sample:
    """Some stamps of a split."""

    pixels: NDArray[np.float16]
    """Stored pixels, shape (n, bands, S, S)."""
    labels: NDArray[np.int8]
    table: pa.Table
    """Their sidecar rows, as far as probes read them."""
    spec: NormalizationSpec
    split: str
    geometry: Geometry = DECALS

    @property
    def regions(self) -> NDArray[Any]:
        """Region of each stamp."""
        return np.asarray(self.table["region_id"].to_numpy())

    def has(self, *names: str) -> bool:
        """Whether the sidecar has all of some columns."""
        return all(name in self.table.column_names for name in names)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column; NaN for null, and throughout if the sidecar lacks it."""
        if not self.has(name):
            return np.full(len(self.labels), np.nan)
        return np.asarray(self.table[name].cast(pa.float64()).to_numpy(), np.float64)

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Median and scale of each band, (n, bands); DatasetError if the sidecar lacks them."""
        return read_statistics(self.table, self.geometry)

    def flux(self) -> NDArray[np.float32]:
        """The pixels denormalised, units of flux; DatasetError as `statistics`."""
        return denormalize(self.pixels, self.spec, *self.statistics())

    def take(self, rows: NDArray[Any]) -> Sample:
        """Some of the stamps."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return replace(self, pixels=self.pixels[index], labels=self.labels[index],
                       table=self.table.take(pa.array(index)))  # fmt: skip


def draw_sample(dataset: Dataset, split: str, per_class: int, seed: int) -> Sample:
    """Draw stamps of both classes at random, each image once, in split order.

    Counterfactuals, which are made from other images, are as if they were not there.

    Raises
    ------
    DatasetError
        If the split has not both classes.
    """
    present = dataset.columns(split)
    missing = [name for name in _NEEDED if name not in present]
    if missing:
        raise DatasetError(f"{dataset.uri}: the sidecar has no column {missing[0]!r}.")
    geometry = dataset.manifest.geometry
    by_band = geometry.band_columns("psf_fwhm_used", "median", "scale")
    names = [n for n in (*_NEEDED, *_WANTED, *colour_columns(geometry), *by_band) if n in present]
    table = dataset.read_sidecar(split, names)
    labels = table["label"].to_numpy()
    first = np.flatnonzero(~is_counterfactual(table))
    if "pixel_hash" in names:
        hashes = np.array(table["pixel_hash"].to_pylist())[first]
        first = first[np.unique(hashes, return_index=True)[1]]
    rng = np.random.default_rng(seed)
    chosen = []
    for label in (0, 1):
        rows = np.sort(first[labels[first] == label])
        if not len(rows):
            kind = "lenses" if label else "non-lenses"
            raise DatasetError(f"{dataset.uri}: split {split!r} has no {kind} to probe with.")
        chosen.append(rng.choice(rows, min(per_class, len(rows)), replace=False))
    return _read(dataset, split, table, np.sort(np.concatenate(chosen)))


def find_partners(dataset: Dataset, sample: Sample) -> tuple[NDArray[np.int64], Sample]:
    """Non-lenses at the very position of a lens: the same galaxy without arcs.

    Returns
    -------
    rows : ndarray of int64, shape (n,)
        Lenses of `sample` that have one.
    partners : Sample
        Their partners, in the same order.
    """
    nobody = np.empty(0, np.int64)
    if not sample.has("ra", "dec"):
        return nobody, sample.take(nobody)
    table = dataset.read_sidecar(sample.split, sample.table.column_names)
    labels = table["label"].to_numpy()
    is_host = (labels == 0) & ~is_counterfactual(table)
    host = {sky: i for i, sky in enumerate(_positions(table)) if is_host[i]}
    host.pop(None, None)
    pairs = [(i, host[sky]) for i, sky in enumerate(_positions(sample.table))
             if sample.labels[i] == 1 and sky in host]  # fmt: skip
    rows, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
    return rows, _read(dataset, sample.split, table, theirs)


def _read(dataset: Dataset, split: str, sidecar: pa.Table, rows: NDArray[np.int64]) -> Sample:
    """Some rows of a split, with their pixels."""
    table = sidecar.take(pa.array(rows))
    labels, manifest = table["label"].to_numpy(), dataset.manifest
    pixels = dataset.read_pixels(split, rows)
    return Sample(pixels, labels, table, manifest.normalization, split, manifest.geometry)


def _positions(table: pa.Table) -> list[tuple[float, float] | None]:
    """Position of each row; None where it is not known: two unknown ones are not the same."""
    sky = np.stack([table[name].cast(pa.float64()).to_numpy() for name in ("ra", "dec")], 1)
    known = np.isfinite(sky).all(1)
    return [tuple(row) if here else None for row, here in zip(sky.tolist(), known, strict=True)]
