"""Logits of stamps in memory, float32, always in the same batches."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lenstrain.training.validate import full_float32

BATCH = 256

TOLERANCE: Final = {"float32": 1e-3, "tf32": 3e-2, "bf16": 0.3}
"""Largest difference of a logit that rounding explains, absolute or, above 1, relative, by the
precision of scoring. Batches of other sizes and other processors change a float32 logit by 1e-5."""


class Scorer:
    """A model that scores arrays of stored pixels.

    Equal stamps in equal places of equal batches get equal bits: batches are cut at fixed places.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    device : torch.device or str
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.device = torch.device(device)

    def __call__(self, pixels: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits, shape (n,)."""
        parts = [np.empty(0)]
        with torch.inference_mode(), full_float32():
            for start in range(0, len(pixels), BATCH):
                part = np.ascontiguousarray(pixels[start : start + BATCH])
                x_BCHW = torch.from_numpy(part).to(
                    self.device, torch.float32, memory_format=torch.channels_last
                )
                parts.append(self.model(x_BCHW).double().cpu().numpy())
        return np.concatenate(parts)
