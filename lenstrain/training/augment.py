"""Rotations, flips and shifts of stamps: drawn from (seed, epoch, row) and applied in one gather.

A draw depends on nothing else, so that it is the same on any number of processes and after a
resume, without a generator whose state would have to be saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lenstrain.config import DataConfig
from lenstrain.networks.d4 import transform

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def draw(
    index_B: Tensor, seed: int, epoch: int, shift_px: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the transformation of each stamp: from the low 43 of 64 bits; the others are free.

    Parameters
    ----------
    index_B : tensor of int64, shape (B,)
        Positions of the stamps in their split.
    seed, epoch : int
    shift_px : int
        Largest shift.

    Returns
    -------
    element_B : tensor of int64, shape (B,)
        Element of D4, uniform over 0 to 7 (see `transform`).
    dy_B, dx_B : tensors of int64, shape (B,)
        Shifts, uniform over -shift_px to shift_px.
    """
    key = _mix(_mix(torch.full_like(index_B, seed)) + epoch)
    bits_B = _mix(key + index_B * _GOLDEN)
    span = 2 * shift_px + 1
    dy_B = _logical_shift(bits_B, 3) % (1 << 20) * span // (1 << 20) - shift_px
    dx_B = _logical_shift(bits_B, 23) % (1 << 20) * span // (1 << 20) - shift_px
    return bits_B & 7, dy_B, dx_B


def augment(
    x_BCHW: Tensor,
    index_B: Tensor,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    window: int | None = None,
) -> Tensor:
    """Apply what is configured to normalised stamps; see `draw` and `transform`.

    Without ``d4`` and ``shift_px`` the stamps are returned unchanged, also without `window`.
    """
    if not (config.d4 or config.shift_px):
        return x_BCHW
    element_B, dy_B, dx_B = draw(index_B, seed, epoch, config.shift_px)
    if not config.d4:
        element_B = torch.zeros_like(element_B)
    shift = (dy_B, dx_B) if config.shift_px else ()
    return transform(x_BCHW, element_B, *shift, window=window)


def _mix(x: Tensor) -> Tensor:
    """Hash of 64-bit integers (splitmix64: Steele, Lea & Flood 2014); products wrap around."""
    x = x + _GOLDEN
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
