"""Counts what would make the host wait for a GPU, on a machine that has none."""

from __future__ import annotations

import threading
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__",
    "is_nonzero", "equal", "nonzero", "masked_select", "unique",
)  # fmt: skip
"""Methods of a tensor whose result the host has to know."""

KERNELS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal",
           "aten.masked_select", "aten.unique", "aten._unique")  # fmt: skip
"""The same below Python, where torch's own code (clipping, an optimiser, a scaler) may ask."""


class HostReads(TorchDispatchMode):
    """Within the block, `found` lists the reads of tensors in this thread.

    Two nets, because neither catches all: kernels as torch dispatches them (``tolist`` and
    ``numpy`` go past it), and methods as Python calls them (a check within torch's C++ does not).
    """

    def __init__(self):
        super().__init__()
        self.found = []
        self._thread = threading.get_ident()
        self._patches = []

    def __enter__(self):
        for name in READS:
            patch = mock.patch.object(torch.Tensor, name, self._noted(name))
            patch.start()
            self._patches.append(patch)
        to = torch.Tensor.to

        def noted_to(tensor, *args, **kwargs):
            # By name only: here `device` itself is the CPU, and a copy to it is none.
            if "cpu" in (*args[:1], kwargs.get("device")):
                self._note("to")
            return to(tensor, *args, **kwargs)

        patch = mock.patch.object(torch.Tensor, "to", noted_to)
        patch.start()
        self._patches.append(patch)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for patch in reversed(self._patches):
            patch.stop()

    def _note(self, name):
        if threading.get_ident() == self._thread:
            self.found.append(name)

    def _noted(self, name):
        method = getattr(torch.Tensor, name)

        def noted(*args, **kwargs):
            self._note(name)
            return method(*args, **kwargs)

        return noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith(KERNELS) or (name.startswith("aten.index") and _by_mask(args)):
            self._note(name)
        return func(*args, **(kwargs or {}))


def _by_mask(args):
    """Whether a tensor is indexed by a mask: how many rows that gives, the host has to know."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in indices)
