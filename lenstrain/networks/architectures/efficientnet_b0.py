"""EfficientNet of the smallest published size (Tan & Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from lenstrain.config import ModelConfig


def build(config: ModelConfig) -> tuple[nn.Module, int]:
    """EfficientNet; its fine stem has stride 1."""
    net: Any = torchvision.models.efficientnet_b0(weights=None)
    features = net.classifier[1].in_features
    net.classifier = nn.Identity()
    if config.stem == "fine":
        net.features[0][0].stride = (1, 1)
    return net, features
