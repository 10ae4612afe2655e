"""ConvNeXt of the smallest published size (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from lenstrain.config import ModelConfig
from lenstrain.networks.stem import fine_stride


def build(config: ModelConfig, bands: int, side: int) -> tuple[nn.Module, int]:
    """ConvNeXt; its fine stem has patches of 2x2 pixels, larger by `fine_stride`."""
    net: Any = torchvision.models.convnext_tiny(weights=None)
    features = net.classifier[2].in_features
    net.classifier[2] = nn.Identity()
    published = net.features[0][0]
    size = 2 * fine_stride(side) if config.stem == "fine" else published.stride[0]
    if (bands, size) != (published.in_channels, published.stride[0]):
        patch = nn.Conv2d(bands, published.out_channels, size, stride=size)
        nn.init.trunc_normal_(patch.weight, std=0.02)
        nn.init.zeros_(patch.bias)  # type: ignore[arg-type]
        net.features[0][0] = patch
    return net, features
