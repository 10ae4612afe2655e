"""The fine stem: how far stamps of any side are scaled down before the first stage of a network."""

from __future__ import annotations

MOST_FINE_PX = 96
"""Most pixels a side of the first stage's maps. A layer costs as many operations as they have
pixels: up to 2.25 times those of a 64 px stamp."""


def fine_stride(side: int) -> int:
    """Stride of the fine stem for stamps of `side` pixels: 1 up to 96, 2 up to 192, else 4.

    So the first stage sees 49 to 96 pixels a side of any stamp larger than 48.
    """
    stride = 1
    while side > stride * MOST_FINE_PX:
        stride *= 2
    return stride


def fine_kernel(stride: int) -> int:
    """Side of its kernel: 3, 3 and 7 pixels for strides 1, 2 and 4, so that none is passed over."""
    return max(3, 2 * stride - 1)
