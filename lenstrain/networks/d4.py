"""Rotations, flips and shifts of stamps (the group D4), another for each stamp, in one gather."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

D4_ORDER = 8


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
        raise ValueError(f"stamps must be square to be rotated, got {tuple(x_BCHW.shape)}")
    window = size if window is None else window
    if dy_B is None or dx_B is None:
        pixel_BP = _turned(size, window, x_BCHW.device)[element_B]
    else:
        pixel_BP = _turned_and_shifted(size, window, element_B, dy_B, dx_B)
    flat_BCP = x_BCHW.flatten(2)
    pixel_BCP = pixel_BP[:, None].expand(-1, flat_BCP.shape[1], -1)
    return flat_BCP.gather(2, pixel_BCP).view(*x_BCHW.shape[:2], window, window)


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


@functools.lru_cache(maxsize=32)
def _turned(size: int, window: int, device: torch.device) -> Tensor:
    """Flat source position of every pixel for each of the 8 elements, shape (8, W * W).

    Made once, on the CPU: on the device this would be most of some twenty small kernels a batch.
    The copy blocks, so that any stream may use it from then on.
    """
    element = torch.arange(D4_ORDER)[:, None, None]
    side = torch.arange(window) + (size - window) // 2
    return _source(size, element, side[:, None], side[None, :]).flatten(1).to(device)


def _turned_and_shifted(
    size: int, window: int, element_B: Tensor, dy_B: Tensor, dx_B: Tensor
) -> Tensor:
    side = torch.arange(window, device=element_B.device) + (size - window) // 2
    y_BS = _mirror(side - dy_B[:, None], size)
    x_BS = _mirror(side - dx_B[:, None], size)
    element_B11 = element_B[:, None, None]
    return _source(size, element_B11, y_BS[:, :, None], x_BS[:, None, :]).flatten(1)


def _mirror(position: Tensor, size: int) -> Tensor:
    """Reflect positions beyond an edge back inside, without repeating the edge pixel."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)
