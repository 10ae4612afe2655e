"""ResNets of any depth and width, for stamps and for ImageNet."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from lenstrain.config import ModelConfig
from lenstrain.networks.stem import fine_kernel, fine_stride

NORM_GROUPS = 8


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
    bands : int
        Channels of a stamp.
    fine : int, optional
        Stride of a stem without pooling (see `fine_stride`), instead of 7x7 of stride 2 with it.
    norm : {"batch", "group"}
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width: int,
        bands: int,
        *,
        fine: int | None = 1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if fine is None else (fine_kernel(fine), fine)
        self.conv1 = nn.Conv2d(bands, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = _norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if fine is None else nn.Identity()
        self.features = width
        self.stages = len(blocks)
        for number, count in enumerate(blocks):
            planes = width << number
            stage = _stage(self.features, planes, count, 1 if number == 0 else 2, norm)
            self.add_module(f"layer{number + 1}", stage)
            self.features = planes
        for module in self.modules():  # as torchvision does: He et al. 2015, arXiv:1502.01852
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pooled features, shape (B, features)."""
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        for number in range(self.stages):
            x_BCHW = self.get_submodule(f"layer{number + 1}")(x_BCHW)
        return x_BCHW.mean((2, 3))


def build_resnet(
    config: ModelConfig, bands: int, side: int, blocks: Sequence[int], width: int = 64
) -> tuple[nn.Module, int]:
    """A ResNet with these blocks per stage, of the configured width or `width`; its features."""
    fine = fine_stride(side) if config.stem == "fine" else None
    net = ResNet(blocks, config.width or width, bands, fine=fine, norm=config.norm)
    return net, net.features


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(NORM_GROUPS, channels)


def _stage(inputs: int, planes: int, blocks: int, stride: int, norm: str) -> nn.Sequential:
    make_norm = functools.partial(_norm, norm)
    shortcut = None
    if stride != 1 or inputs != planes:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, planes, 1, stride, bias=False), make_norm(planes)
        )
    first = BasicBlock(inputs, planes, stride, shortcut, norm_layer=make_norm)
    rest = (BasicBlock(planes, planes, norm_layer=make_norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
