"""Whether a GPU can run this build of PyTorch, and whether each process has one of its own."""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lensprep.errors import ConfigError

OLD_GPUS = ("sm_50", "sm_60", "sm_70")
"""What PyTorch's builds for CUDA 12.6 have and those for CUDA 13 lack: Maxwell, Pascal, Volta."""
BUILDS = "https://pytorch.org/get-started/locally"
BUILD_FOR_OLD_GPUS = "pip install torch==2.14.1+cu126 torchvision==0.29.1+cu126 --index-url URL"
"""The versions of constraints.txt. With their suffix, since pip takes another build for the same.

2.14 is the last release for which PyTorch planned such a build (its issues 190355 and 190385).
"""

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
_CPU = "cpu"


def can_run(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a GPU can run code that was built for some architectures.

    Machine code (``sm_86``) runs on GPUs of the same major version and an equal or higher minor
    one; PTX (``compute_90``) is compiled by the driver for every later GPU. With the suffix ``a``
    both are for that one GPU alone, with ``f`` for its major version.

    Parameters
    ----------
    capability : tuple of int
        Major and minor version of the GPU.
    built_for : sequence of str
        As `torch.cuda.get_arch_list` gives them.
    """
    for kind, major, minor, suffix in _ARCHITECTURE.findall(" ".join(built_for)):
        built = int(major), int(minor)
        if suffix == "a":
            fits = capability == built
        elif kind == "sm" or suffix == "f":
            fits = capability[0] == built[0] and capability >= built
        else:
            fits = capability >= built
        if fits:
            return True
    return False


def refuse_unsupported(gpu: int) -> None:
    """Refuse a GPU that this build of PyTorch has no code for, before the first kernel fails.

    Raises
    ------
    ConfigError
    """
    built_for = torch.cuda.get_arch_list()
    if torch.version.cuda is None or not built_for:
        return  # AMD's GPUs have other names; without a list nothing is known
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own words for this, in ten lines
        capability = torch.cuda.get_device_capability(gpu)
    if can_run(capability, built_for):
        return
    old = can_run(capability, OLD_GPUS)
    install = f"{BUILD_FOR_OLD_GPUS}, with the URL of CUDA 12.6 at {BUILDS}" if old else BUILDS
    raise ConfigError(
        f"PyTorch {torch.__version__} has no code for GPU {gpu} "
        f"({torch.cuda.get_device_name(gpu)}, compute capability {capability[0]}.{capability[1]}): "
        f"it was built for {', '.join(built_for)}. Install a build that has ({install}), or choose "
        "the device 'cpu' (--device cpu, train.device=cpu)."
    )


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a process works."""

    host: str
    gpu: str
    """Unique in the world; "cpu" without a GPU, empty if PyTorch does not say which."""


def find_seat(device: torch.device) -> Seat:
    """The machine and the physical GPU of this process, whatever number the GPU has in it."""
    gpu = _CPU
    if device.type == "cuda":
        # Without it (older versions of PyTorch) NCCL finds two processes on one GPU itself.
        gpu = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    return Seat(socket.gethostname(), gpu)


def check_seats(seats: Sequence[Seat]) -> None:
    """Refuse processes that share a GPU, or of which some have one and others have none.

    Parameters
    ----------
    seats : sequence of Seat
        Of all processes, by rank.

    Raises
    ------
    ConfigError
        The same in every process.
    """
    first: dict[str, int] = {}
    for rank, seat in enumerate(seats):
        other = first.setdefault(seat.gpu, rank)
        if other == rank or seat.gpu in (_CPU, ""):
            continue
        there = len({one.gpu for one in seats if one.host == seat.host})
        raise ConfigError(
            f"Process {rank} has no GPU of its own: on {seat.host} it would share one with process "
            f"{other}. Start torchrun with --nproc-per-node {there}, or look at "
            "CUDA_VISIBLE_DEVICES."
        )
    if _CPU in first and len(first) > 1:
        rank = first.pop(_CPU)
        raise ConfigError(
            f"Process {rank} finds no GPU on {seats[rank].host}, but process "
            f"{min(first.values())} has one. Look at CUDA_VISIBLE_DEVICES, or choose the device "
            "'cpu' for all."
        )
