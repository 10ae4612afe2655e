"""ResNet of 34 layers (He et al. 2016, arXiv:1512.03385)."""

from __future__ import annotations

from torch import nn

from lenstrain.config import ModelConfig
from lenstrain.networks.resnet import build_resnet


def build(config: ModelConfig, bands: int, side: int) -> tuple[nn.Module, int]:
    """Features of a stamp, and their number."""
    return build_resnet(config, bands, side, (3, 4, 6, 3))
