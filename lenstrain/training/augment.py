"""Turns, flips and shifts of stamps: drawn from (seed, epoch, row) and done in one gather.

A draw depends on nothing else, so that it is the same on any number of processes and after a
resume, without a generator whose state would have to be kept.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

D4_ORDER = 8

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def draw(
    index_B: Tensor, seed: int, epoch: int, shift_px: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw what happens to each stamp.

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


def transform(
    x_BCHW: Tensor,
    element_B: Tensor,
    dy_B: Tensor | None = None,
    dx_B: Tensor | None = None,
    *,
    window: int | None = None,
) -> Tensor:
    """Apply an element of D4 and a shift to each stamp, in one gather.

    Element ``4 f + k`` turns by ``k`` quarter turns (as `torch.rot90`), after a flip of x if
    ``f = 1``. A shift then moves the content by (+dy, +dx); what comes in at the edges mirrors
    what is there.

    Parameters
    ----------
    x_BCHW : tensor, shape (B, C, S, S)
    element_B : tensor of int64, shape (B,)
    dy_B, dx_B : tensors of int64, shape (B,), optional
        Shifts in pixels, smaller than S; both or neither.
    window : int, optional
        Side W of the central window to make; the whole stamp if not given. S - W is even.

    Returns
    -------
    tensor, shape (B, C, W, W)
        New memory, contiguous.
    """
    size = x_BCHW.shape[-1]
    if x_BCHW.shape[-2] != size:
        raise ValueError(f"stamps must be square to be turned, got {tuple(x_BCHW.shape)}")
    window = size if window is None else window
    if dy_B is None or dx_B is None:
        pixel_BP = _turned(size, window, x_BCHW.device)[element_B]
    else:
        pixel_BP = _turned_and_shifted(size, window, element_B, dy_B, dx_B)
    flat_BCP = x_BCHW.flatten(2)
    pixel_BCP = pixel_BP[:, None].expand(-1, flat_BCP.shape[1], -1)
    return flat_BCP.gather(2, pixel_BCP).view(*x_BCHW.shape[:2], window, window)


def augment(
    x_BCHW: Tensor,
    index_B: Tensor,
    *,
    seed: int,
    epoch: int,
    d4: bool = True,
    shift_px: int = 0,
    window: int | None = None,
) -> Tensor:
    """Draw and transform in one call: uniform over D4 if `d4`, over shifts if `shift_px` is not 0.

    Parameters are those of `draw` and `transform`.
    """
    element_B, dy_B, dx_B = draw(index_B, seed, epoch, shift_px)
    if not d4:
        element_B = torch.zeros_like(element_B)
    if shift_px == 0:
        return transform(x_BCHW, element_B, window=window)
    return transform(x_BCHW, element_B, dy_B, dx_B, window=window)


def _source(size: int, element: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Flat position in the input of output pixel (y, x) under an element of D4."""
    last = size - 1
    turn = element % 4
    # Inverse of k counter-clockwise quarter turns, as torch.rot90 over (y, x) does them.
    odd, back = turn % 2 == 1, turn >= 2
    sy = torch.where(odd, x, y)
    sx = torch.where(odd, last - y, x)
    sy, sx = torch.where(back, last - sy, sy), torch.where(back, last - sx, sx)
    sx = torch.where(element >= 4, last - sx, sx)
    return sy * size + sx


def _window(size: int, window: int, device: torch.device) -> Tensor:
    edge = (size - window) // 2
    return torch.arange(edge, edge + window, device=device)


@functools.lru_cache(maxsize=32)
def _turned(size: int, window: int, device: torch.device) -> Tensor:
    """Flat source position of every pixel for each of the 8 elements, shape (8, W * W).

    Made once, on the CPU: of some twenty small kernels a batch, most would be for this. The copy
    is one that waits, so that any stream may use it from then on.
    """
    host = torch.device("cpu")
    element = torch.arange(D4_ORDER, device=host)[:, None, None]
    side = _window(size, window, host)
    return _source(size, element, side[:, None], side[None, :]).flatten(1).to(device)


def _turned_and_shifted(
    size: int, window: int, element_B: Tensor, dy_B: Tensor, dx_B: Tensor
) -> Tensor:
    side = _window(size, window, element_B.device)
    y_BS = _mirror(side - dy_B[:, None], size)
    x_BS = _mirror(side - dx_B[:, None], size)
    element_B11 = element_B[:, None, None]
    return _source(size, element_B11, y_BS[:, :, None], x_BS[:, None, :]).flatten(1)


def _mirror(position: Tensor, size: int) -> Tensor:
    """Reflect positions beyond an edge back inside, without repeating the edge pixel."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def _mix(x: Tensor) -> Tensor:
    """Hash of 64-bit integers (splitmix64: Steele, Lea & Flood 2014); products wrap around."""
    x = x + _GOLDEN
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
