"""EfficientNet of the smallest published size (Tan & Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from lenstrain.config import ModelConfig
from lenstrain.networks.stem import fine_kernel, fine_stride


def build(config: ModelConfig, bands: int, side: int) -> tuple[nn.Module, int]:
    """EfficientNet; its fine stem has no other stride than `fine_stride`."""
    net: Any = torchvision.models.efficientnet_b0(weights=None)
    features = net.classifier[1].in_features
    net.classifier = nn.Identity()
    stem = net.features[0][0]
    stride = fine_stride(side) if config.stem == "fine" else stem.stride[0]
    kernel = fine_kernel(stride)
    if (bands, kernel) != (stem.in_channels, stem.kernel_size[0]):
        stem = nn.Conv2d(bands, stem.out_channels, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")  # as torchvision does
        net.features[0][0] = stem
    stem.stride = (stride, stride)
    return net, features
