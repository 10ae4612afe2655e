"""From the host to the device: as float16, from pinned memory, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device as it is, without waiting.

    A GPU can only fetch from page-locked memory without the host, so other tensors are moved there
    first; its allocator reuses that memory only after the copy. On a CPU the tensor itself is
    returned.
    """
    if device.type == "cuda" and value.device.type == "cpu" and not value.is_pinned():
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def widen(x_BCHW: Tensor, *, channels_last: bool) -> Tensor:
    """Pixels in float32 and in the layout of the network, on the device where they are."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # Widened first, then laid out: on a CPU twice as fast as both in one call.
    return x_BCHW.float().contiguous(memory_format=layout)
