"""A network by its name: normalised stamps in, one float32 logit each out."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from lensprep.dataset import DECALS, Geometry
from lensprep.errors import ConfigError
from lensprep.store import is_remote, local_file
from lenstrain.config import ModelConfig
from lenstrain.networks import architectures
from lenstrain.networks.weights import load_weights


class LensFinder(nn.Module):
    """A backbone, a dropout, and a linear head that works in float32 under any autocast.

    Parameters
    ----------
    backbone : nn.Module
        Maps (B, bands, S, S) to (B, features).
    features : int
    dropout : float
        Share of features dropped before the head while training.
    crop : int, optional
        Side of the central window that the backbone sees.
    """

    def __init__(
        self, backbone: nn.Module, features: int, dropout: float = 0.0, crop: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, 1)
        self.crop = crop

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, float32, shape (B,)."""
        if self.crop is not None:
            edge = (x_BCHW.shape[-1] - self.crop) // 2  # 0 if the augmentation cropped already
            x_BCHW = x_BCHW[..., edge : edge + self.crop, edge : edge + self.crop]
        features_BF = self.dropout(self.backbone(x_BCHW))
        with torch.autocast(x_BCHW.device.type, enabled=False):
            logit_B1: Tensor = self.head(features_BF.float())
        return logit_B1.squeeze(1)


def build_model(config: ModelConfig, geometry: Geometry = DECALS) -> nn.Module:
    """Build a network with random weights (drawn from torch's global generator) or given ones.

    Returns
    -------
    nn.Module
        Maps float (B, bands, side, side) to float32 logits (B,).

    Raises
    ------
    ConfigError
        If ``config.crop`` is no central window of such stamps.
    CheckpointError
        If ``config.weights`` cannot be read or does not fit, or was trained on other stamps.
    """
    check_crop(config, geometry)
    architecture = import_module(f"{architectures.__name__}.{config.arch}")
    side = config.crop or geometry.side
    backbone, features = architecture.build(config, len(geometry.bands), side)
    model = LensFinder(backbone, features, config.dropout, config.crop)
    if config.weights is not None:
        uri = config.weights
        with local_file(uri) if is_remote(uri) else nullcontext(Path(uri)) as path:
            load_weights(model, path, geometry)
    return model


def check_crop(config: ModelConfig, geometry: Geometry) -> None:
    """Refuse, with ConfigError, a ``model.crop`` that is no central window of stamps."""
    crop, side = config.crop, geometry.side
    if crop is not None and (crop > side or (side - crop) % 2):
        parity = "an odd" if side % 2 else "an even"
        raise ConfigError(
            f"model.crop = {crop} is no central window of stamps of {side} x {side} pixels: take "
            f"{parity} number up to {side}."
        )


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
