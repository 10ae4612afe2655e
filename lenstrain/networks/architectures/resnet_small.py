"""Narrow ResNet of one block a stage, for CPUs."""

from __future__ import annotations

from torch import nn

from lenstrain.config import ModelConfig
from lenstrain.networks.resnet import build_resnet


def build(config: ModelConfig, bands: int, side: int) -> tuple[nn.Module, int]:
    """Features of a stamp, and their number."""
    return build_resnet(config, bands, side, config.blocks or (1, 1, 1), width=16)
