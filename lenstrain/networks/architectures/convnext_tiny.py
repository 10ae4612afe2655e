"""ConvNeXt of the smallest published size (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from lensprep.dataset import BANDS
from lenstrain.config import ModelConfig


def build(config: ModelConfig) -> tuple[nn.Module, int]:
    """ConvNeXt; its fine stem is a 2x2 convolution of stride 2."""
    net: Any = torchvision.models.convnext_tiny(weights=None)
    features = net.classifier[2].in_features
    net.classifier[2] = nn.Identity()
    if config.stem == "fine":
        patch = nn.Conv2d(len(BANDS), net.features[0][0].out_channels, 2, stride=2)
        nn.init.trunc_normal_(patch.weight, std=0.02)
        nn.init.zeros_(patch.bias)  # type: ignore[arg-type]
        net.features[0][0] = patch
    return net, features
