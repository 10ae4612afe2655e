"""Images, cubes and stacks of stamps, from which the middle of each band is taken.

    planes = of_array(array, order, wanted)     (y, x), bands first or last, or many of them

An array may be a section of a file that reads what is indexed. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset.geometry import Geometry
from lensprep.decode.cutoutbytes import RefusedError
from lensprep.decode.reasons import RejectReason


@dataclass(frozen=True)
class Wanted:
    """What is to be read from one file."""

    geometry: Geometry
    bands: tuple[str, ...]
    """Some bands of the survey: all of them, or the one to which the file belongs."""
    stamp: int | None = None
    """Number of the stamp in a stack, from 0; None if the file is of one stamp."""

    def only(self, band: str) -> Wanted:
        """The same of one band."""
        return replace(self, bands=(band,))


def band_order(text: str, bands: tuple[str, ...]) -> tuple[str, ...]:
    """Bands in the order that a file states: "grz", "G, R, Z", "['g', 'r', 'z']", "vis".

    Those that are in `bands` are spelt as there.
    """
    spelt = {band.lower(): band for band in bands}
    words = re.findall("[a-z0-9]+", text.lower())
    if len(words) == 1 and words[0] not in spelt:
        words = list(words[0])
    return tuple(spelt.get(word, word) for word in words)


def of_array(array: Any, order: tuple[str, ...], wanted: Wanted) -> list[NDArray[Any]]:
    """Middles of the wanted bands.

    Parameters
    ----------
    array : array or section of a file
        (y, x) of a single band; with the bands on the first or the last axis; or either of them
        behind an axis of stamps.
    order : tuple of str
        Bands of its planes.
    wanted : Wanted

    Raises
    ------
    RefusedError
        If its shape does not fit, a band is not there, or the middle is smaller than a stamp.
    """
    shape, kind = tuple(array.shape), getattr(array, "dtype", np.dtype("f4"))
    if kind.kind not in "fiub":  # text or objects, which are not even read
        raise RefusedError(f"the pixels are {kind}", RejectReason.WRONG_DTYPE)
    if wanted.stamp is not None:
        if len(shape) < 3 or wanted.stamp >= shape[0]:
            raise RefusedError(
                f"no stamp {wanted.stamp} in {size(shape)}: index counts the first axis from 0",
                RejectReason.WRONG_SHAPE,
            )
        array = array[wanted.stamp]
        shape = shape[1:]
    elif len(shape) == 4 or (len(shape) == 3 and len(order) == 1 and 1 not in shape):
        raise RefusedError(
            f"{size(shape)} is a stack: say which stamp in a column index",
            RejectReason.WRONG_SHAPE,
        )
    if len(shape) == 2 and len(order) == 1 and order == wanted.bands:
        return [_middles(array, shape, wanted.geometry.side)]
    if len(shape) != 3:
        raise RefusedError(f"the cube is {size(shape)}", RejectReason.WRONG_SHAPE)
    return _of_cube(array, shape, order, wanted)


def _of_cube(
    cube: Any, shape: tuple[int, ...], order: tuple[str, ...], wanted: Wanted
) -> list[NDArray[Any]]:
    last = shape[0] != len(order) and shape[2] == len(order)
    bands, sides = (shape[2], shape[:2]) if last else (shape[0], shape[1:])
    if bands != len(order) or len(set(order)) != bands or not set(wanted.bands) <= set(order):
        spelt = "".join(order) if max(map(len, order), default=1) == 1 else "+".join(order)
        raise RefusedError(
            f"the cube is {size(shape)}, its bands {spelt!r:.40}", RejectReason.MISSING_BAND
        )
    y, x = _middle(sides, wanted.geometry.side)
    # Whole rows first, since a section reads contiguous stretches of the file.
    stamps = np.moveaxis(cube[y, :, :][:, x], 2, 0) if last else cube[:, y, :][:, :, x]
    return [stamps[order.index(band)] for band in wanted.bands]


def _middles(image: Any, shape: tuple[int, ...], side: int) -> NDArray[Any]:
    y, x = _middle(shape, side)
    middle: NDArray[Any] = image[y, :][:, x]
    return middle


def _middle(sides: tuple[int, ...], side: int) -> tuple[slice, slice]:
    if min(sides) < side:
        raise RefusedError(f"a band is {size(sides)}", RejectReason.WRONG_SHAPE)
    y, x = ((each - side) // 2 for each in sides)
    return slice(y, y + side), slice(x, x + side)


def size(shape: tuple[int, ...]) -> str:
    """A shape for people."""
    return " x ".join(map(str, shape)) or "a number"
