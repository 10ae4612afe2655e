"""Between the host and the device, without waiting: pixels as float16, from pinned memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


def receive(values: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """Begin to copy tensors from their device to the CPU, behind the work that it has to do so far.

    Nothing waits before the function that is returned is called, in whatever thread: it waits for
    these copies, not for work that the device was given since, and returns them.
    """
    copies = [value.to("cpu", non_blocking=True) for value in values]  # from a GPU, into pinned
    if not any(value.device.type == "cuda" for value in values):
        return lambda: copies
    make_event: Any = torch.cuda.Event
    arrived = make_event(blocking=True)  # a thread that waits for it sleeps
    arrived.record()
    device = torch.cuda.current_device()

    def wait() -> Sequence[Tensor]:
        with torch.cuda.device(device):  # another thread begins with the first, and would use it
            arrived.synchronize()
        return copies

    return wait
