"""Pictures of stamps side by side, with what is known of each under it, as one figure."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure  # no backend or window is involved
from numpy.typing import NDArray

_GAP: Final = 0.03
"""Of the width, between groups."""
_TITLE_INCHES: Final = 0.4
_TEXT_INCHES: Final = 0.42
_DPI: Final = 110
_NOTE: Final = 12
"""Letters of a note that there is room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One stamp to draw."""

    image: NDArray[np.uint8]
    """Colours, shape (side, side, 3)."""
    label: int
    theta_e_arcsec: float
    """NaN if nobody knows it."""
    key: str
    notes: tuple[str, ...] = ()


class StampFigure(Figure):
    """A figure that a notebook shows without ``pyplot``, which would show it twice."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()


def draw_pictures(
    groups: Sequence[tuple[str, Sequence[Picture]]], columns: int, inches: float = 1.55
) -> Figure:
    """Groups of stamps side by side, each with its title above it.

    Parameters
    ----------
    groups : sequence of (str, sequence of Picture)
        Titles, and what is drawn under each; without any title no room is left for them.
    columns : int
        Stamps side by side in each group.
    inches : float
        Width of a stamp.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = max(1, *(-(-len(pictures) // columns) for _, pictures in groups))
    head = _TITLE_INCHES if any(title for title, _ in groups) else 0.06
    gaps = len(groups) - 1
    size = (len(groups) * columns * inches + 0.5 * gaps, rows * (inches + _TEXT_INCHES) + head)
    figure = StampFigure(figsize=size, layout=None, facecolor="white")
    width = (1 - gaps * _GAP) / (len(groups) * columns)
    height, side = (inches + _TEXT_INCHES) / size[1], 0.94 * inches / size[1]
    for place, (title, pictures) in enumerate(groups):
        left = place * (columns * width + _GAP)
        middle, above = left + columns * width / 2, 1 - head / 2 / size[1]
        if title:
            figure.text(middle, above, title, ha="center", va="center")
        for number, picture in enumerate(pictures):
            row, column = divmod(number, columns)
            bottom = 1 - head / size[1] - row * height - side
            box = (left + (column + 0.03) * width, bottom, 0.94 * width, side)
            _draw_picture(figure.add_axes(box), picture)
    return figure


def _draw_picture(axes: Any, picture: Picture) -> None:
    """One stamp, its first row at the bottom, as FITS images are shown."""
    axes.imshow(picture.image, origin="lower", interpolation="nearest")
    axes.set_axis_off()
    words = [f"label {picture.label}"]
    if picture.label == 1 and math.isfinite(picture.theta_e_arcsec):
        words.append(f"θ_E {picture.theta_e_arcsec:.2f}″")
    label = "   ".join([*words, *(note[:_NOTE] for note in picture.notes)])
    # What a catalogue says is no formula, whatever dollars are in it.
    style = {"textcoords": "offset points", "ha": "center", "va": "top", "parse_math": False,
             "xycoords": "axes fraction"}  # fmt: skip
    axes.annotate(label, (0.5, 0), (0, -3), size=7, **style)
    key = f"{picture.key[:16]}\n{picture.key[16:32]}"
    axes.annotate(key, (0.5, 0), (0, -13.6), size=5, family="monospace", linespacing=1.15, **style)
