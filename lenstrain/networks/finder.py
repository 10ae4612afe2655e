"""The networks: normalised stamps in, one float32 logit each out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from lensprep.errors import CheckpointError, NotFoundError
from lensprep.store import is_remote, local_file
from lenstrain.config import ModelConfig
from lenstrain.networks.tensorfile import load_tensors

RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet_small": (1, 1, 1)}
DEFAULT_WIDTH = {"resnet18": 64, "resnet34": 64, "resnet_small": 16}
NORM_GROUPS = 8


class LensFinder(nn.Module):
    """A backbone, a dropout, and a linear head that works in float32 under any autocast.

    Parameters
    ----------
    backbone : nn.Module
        Maps (B, 3, S, S) to (B, features).
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


class ResNet(nn.Module):
    """A ResNet of basic blocks (He et al. 2016, arXiv:1512.03385), without its last layer.

    The names of its parameters, and with the ImageNet stem its arithmetic, are torchvision's, so
    that weights move either way.

    Parameters
    ----------
    blocks : sequence of int
        Blocks of each stage.
    width : int
        Channels of the first stage; each next one has twice as many at half the resolution.
    fine : bool
        3x3 stem of stride 1 without pooling, instead of 7x7 of stride 2 with it.
    norm : {"batch", "group"}
    """

    def __init__(
        self, blocks: Sequence[int], width: int, *, fine: bool = True, norm: str = "batch"
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if fine else (7, 2)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = _norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if fine else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self.stages = len(blocks)
        for number, count in enumerate(blocks):
            planes = width << number
            stage = _stage(channels, planes, count, 1 if number == 0 else 2, norm)
            self.add_module(f"layer{number + 1}", stage)
            channels = planes
        self.features = channels
        _initialise(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pooled features, shape (B, features)."""
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        for number in range(self.stages):
            x_BCHW = self.get_submodule(f"layer{number + 1}")(x_BCHW)
        return x_BCHW.mean((2, 3))


def build_model(config: ModelConfig) -> nn.Module:
    """Build a network with random weights (drawn from torch's global generator) or local ones.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    nn.Module
        Maps float (B, 3, 64, 64) to float32 logits (B,).

    Raises
    ------
    CheckpointError
        If ``config.weights`` cannot be read or does not fit.
    """
    backbone, features = _backbone(config)
    model = LensFinder(backbone, features, config.dropout, config.crop)
    if config.weights is not None:
        place = config.weights
        with local_file(place) if is_remote(place) else nullcontext(Path(place)) as path:
            load_weights(model, path)
    return model


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Fill a model from a local file: a checkpoint of this program or a state dict of torchvision.

    Tensors of another shape (a stem, a head of 1,000 classes) keep their random values.

    Returns
    -------
    list of str
        Names in the model that the file did not fill.

    Raises
    ------
    CheckpointError
        If there is no such file, it is of another kind, or fills less than half of the parameters.
    StorageError
        If it cannot be read.
    """
    state, made = _read_state(path)
    own = model.state_dict()
    bare = {name.removeprefix("backbone."): name for name in own}
    found = {}
    for name, value in state.items():
        target = name if name in own else bare.get(name)
        if target is not None and own[target].shape == value.shape:
            found[target] = value
    filled = sum(own[name].numel() for name in found)
    if 2 * filled < sum(value.numel() for value in own.values()):
        known = [f"model.{k}={made[k]!s:.40}" for k in ("arch", "width", "blocks") if made.get(k)]
        raise CheckpointError(
            f"{path} does not fit this model: it fills {len(found)} of {len(own)} tensors. Set "
            + (" ".join(known) or "model.arch and model.width to what the weights were made with")
            + "."
        )
    model.load_state_dict(found, strict=False)
    return [name for name in own if name not in found]


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the section ``model`` of the configuration of a checkpoint of ours."""
    try:
        content = load_tensors(path, "file of weights")
    except NotFoundError as error:
        raise CheckpointError(str(error)) from None
    made: Any = {}
    if isinstance(content, dict):
        config = content.get("config")
        made = config.get("model") if isinstance(config, dict) else {}
        for inner in ("ema", "model"):
            if isinstance(content.get(inner), dict):
                content = content[inner]
                break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no table of tensors. Save model.state_dict() in it.")
    return content, made if isinstance(made, dict) else {}


def _backbone(config: ModelConfig) -> tuple[nn.Module, int]:
    fine = config.stem == "fine"
    if config.arch == "convnext_tiny":
        return _convnext(fine)
    if config.arch == "efficientnet_b0":
        return _efficientnet(fine)
    net = ResNet(
        config.blocks or RESNET_BLOCKS[config.arch],
        config.width or DEFAULT_WIDTH[config.arch],
        fine=fine,
        norm=config.norm,
    )
    return net, net.features


def _convnext(fine: bool) -> tuple[nn.Module, int]:
    net: Any = torchvision.models.convnext_tiny(weights=None)
    features = net.classifier[2].in_features
    net.classifier[2] = nn.Identity()
    if fine:
        patch = nn.Conv2d(3, net.features[0][0].out_channels, 2, stride=2)
        nn.init.trunc_normal_(patch.weight, std=0.02)
        nn.init.zeros_(patch.bias)  # type: ignore[arg-type]
        net.features[0][0] = patch
    return net, features


def _efficientnet(fine: bool) -> tuple[nn.Module, int]:
    net: Any = torchvision.models.efficientnet_b0(weights=None)
    features = net.classifier[1].in_features
    net.classifier = nn.Identity()
    if fine:
        net.features[0][0].stride = (1, 1)
    return net, features


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(NORM_GROUPS, channels)


def _stage(inputs: int, planes: int, blocks: int, stride: int, norm: str) -> nn.Sequential:
    def make_norm(channels: int) -> nn.Module:
        return _norm(norm, channels)

    shortcut = None
    if stride != 1 or inputs != planes:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, planes, 1, stride, bias=False), make_norm(planes)
        )
    first = BasicBlock(inputs, planes, stride, shortcut, norm_layer=make_norm)
    rest = (BasicBlock(planes, planes, norm_layer=make_norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _initialise(net: nn.Module) -> None:
    """Initialise as torchvision does: He et al. 2015 (arXiv:1502.01852), by fan-out."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
