"""Stamps that were read: pixels with what the sidecar says of each, to look at and to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.geometry import Geometry, join_bands
from lensprep.dataset.layout import COUNTERFACTUAL, GRADE, KIND
from lensprep.dataset.normalization import NormalizationSpec, denormalize
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import read_statistics
from lensprep.errors import plain_text

if TYPE_CHECKING:
    from lensprep.drawing import Picture

SEPARATION: Final = "separation_arcsec"
"""Column of stamps that were selected by position: how far from it they lie."""
_COLUMNS: Final = 6
"""Stamps side by side in a figure."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Stamps(Sequence["Stamp"]):
    """Some stamps of a dataset, in memory: a sequence of `Stamp`.

    Examples
    --------
    >>> lenses = open_dataset("demo/dataset")["test"].stamps("label == 1", count=6)
    >>> lenses.pixels.shape
    (6, 3, 64, 64)
    >>> lenses.table["theta_e_arcsec"].to_pylist()
    [0.3, 1.0, 0.3, 0.3, 1.0, 0.3]
    >>> lenses.plot()  # in a notebook, the picture
    """

    table: pa.Table
    """Their sidecar rows, with ``split``, ``index`` (position in the split) and, of stamps that
    were selected by position, ``separation_arcsec``."""
    pixels: NDArray[np.float16]
    """As stored, which is normalised: shape (n, bands, side, side)."""
    geometry: Geometry
    normalization: NormalizationSpec

    def __len__(self) -> int:
        return len(self.pixels)

    @overload
    def __getitem__(self, index: int) -> Stamp: ...
    @overload
    def __getitem__(self, index: slice) -> Stamps: ...
    def __getitem__(self, index: int | slice) -> Stamp | Stamps:
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            return replace(self, table=self.table.take(rows), pixels=self.pixels[rows])
        number = range(len(self))[index]
        return Stamp(
            pixels=self.pixels[number],
            row=self.table.slice(number, 1).to_pylist()[0],
            stamps=self[number : number + 1],
        )

    def __repr__(self) -> str:
        rows = "".join(f"\n  {stamp!r}" for stamp in self[:10])
        more = f"\n  and {len(self) - 10:,} more" if len(self) > 10 else ""
        return f"{len(self):,} stamp{'s' * (len(self) != 1)} of {self.geometry}{rows}{more}"

    def restored(self) -> NDArray[np.float32]:
        """Flux per pixel: the normalisation undone, but where it clipped.

        Returns
        -------
        ndarray of float32, shape (n, bands, side, side)
            In nanomaggies where the zero point of the survey is 22.5, as that of DECaLS.

        Raises
        ------
        DatasetError
            If the sidecar lacks the statistics that this takes.
        ConfigError
            If this version does not know the normalisation.
        """
        statistics = read_statistics(self.table, self.geometry)
        return denormalize(self.pixels, self.normalization, *statistics)

    def plot(self, columns: int = _COLUMNS, inches: float = 1.55) -> Any:
        """Colour pictures, in order, with label, theta_E, notes and key under each.

        Colours are those of the Legacy Survey viewer, from `restored` fluxes.

        Parameters
        ----------
        columns : int
            Stamps side by side.
        inches : float
            Width of a stamp.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        DatasetError, ConfigError
            As `restored`.
        """
        from lensprep.drawing import draw_pictures  # matplotlib is slow to import

        title = "" if len(self) else "no stamps"
        return draw_pictures([(title, self.pictures())], max(1, min(columns, len(self))), inches)

    def pictures(self) -> list[Picture]:
        """Each stamp in the colours of the Legacy Survey viewer, with what stands under it.

        Raises
        ------
        DatasetError, ConfigError
            As `restored`.
        """
        from lensprep.drawing import Picture  # matplotlib is slow to import

        images = lupton_rgb(self.restored(), self.geometry)
        return [
            Picture(
                image=image,
                label=stamp.label,
                theta_e_arcsec=stamp.theta_e_arcsec,
                key=stamp.key,
                notes=stamp.notes,
            )
            for image, stamp in zip(images, self, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Stamp:
    """One stamp of a dataset, with its sidecar row.

    Examples
    --------
    >>> stamp = open_dataset("demo/dataset").stamp("6db0fa938adbdb555160d15c4d2ada30")
    >>> stamp.label, stamp.theta_e_arcsec, stamp.row["psfsize_r"]
    (1, 0.3, 1.1465719450038854)
    >>> stamp.restored().sum(axis=(1, 2)).round(2)  # nanomaggies in g, r, z
    array([ 8.17, 15.49, 24.71], dtype=float32)
    """

    pixels: NDArray[np.float16]
    """As stored, which is normalised: shape (bands, side, side)."""
    row: dict[str, Any]
    """Its row of `Stamps.table`: every column of the sidecar, with ``split`` and ``index``."""
    stamps: Stamps
    """The same as a sequence of one."""

    @property
    def key(self) -> str:
        """The name of the stamp: in its tar, in the sidecar and in tables of scores."""
        return str(self.row["key"])

    @property
    def label(self) -> int:
        """1 for a lens, 0 for a non-lens."""
        return int(self.row["label"])

    @property
    def ra(self) -> float:
        """Right ascension in degrees; NaN if it is not known."""
        return self._number("ra")

    @property
    def dec(self) -> float:
        """Declination in degrees; NaN if it is not known."""
        return self._number("dec")

    @property
    def theta_e_arcsec(self) -> float:
        """Einstein radius; NaN if it is not known."""
        return self._number("theta_e_arcsec")

    @property
    def notes(self) -> tuple[str, ...]:
        """Kind of a counterfactual, kind and grade in a catalogue, if there are any."""
        found = (self.row.get(name) for name in (COUNTERFACTUAL, KIND, GRADE))
        return tuple(str(note) for note in found if note)

    def _number(self, name: str) -> float:
        value = self.row.get(name)
        return math.nan if value is None else float(value)

    def __repr__(self) -> str:
        geometry = self.stamps.geometry
        words = [f"label {self.label}"]
        if self.label == 1 and math.isfinite(self.theta_e_arcsec):
            words.append(f"theta_E {self.theta_e_arcsec:g} arcsec")
        if math.isfinite(self.ra + self.dec):
            words.append(f"ra {self.ra:.5f}, dec {self.dec:.5f}")
        if SEPARATION in self.row:
            words.append(f"{self.row[SEPARATION]:.2f} arcsec away")
        place = f"{self.row['split']} {self.row['index']}"
        size = f"{join_bands(geometry.bands)} {geometry.side} x {geometry.side}"
        return plain_text(f"Stamp {self.key} ({', '.join([*words, *self.notes, place])}; {size})")

    def restored(self) -> NDArray[np.float32]:
        """Flux per pixel, shape (bands, side, side); see `Stamps.restored`."""
        return self.stamps.restored()[0]

    def plot(self, inches: float = 3.1) -> Any:
        """The stamp as a matplotlib figure; see `Stamps.plot`."""
        return self.stamps.plot(inches=inches)
