"""A GPU for tests on a machine without one: fake tensors on ``cuda``, and a log of what they cost.

PyTorch's fake tensors have shape, type, strides and device, and no contents. All code above them
is the real one; what is replaced here is what torch itself only does if there is a GPU.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lenstrain.networks import d4
from lenstrain.training import feeding

DEVICE = torch.device("cuda", 0)
UPDATE = torch.ops.aten._fused_adamw_.tensor_lr
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_)
FLAGS = (
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
)
"""What a run sets in the process."""


class HostWaitsError(Exception):
    """The host was to wait until the device has done all."""


@dataclass
class FakeCuda:
    """Fake tensors on a fake GPU, within its `mode`, and what was asked of it."""

    mode: FakeTensorMode
    copies: list[tuple[str, torch.dtype, bool, bool]] = field(default_factory=list)
    """Copies between host and device: which way, of what, whether from pinned memory, and whether
    the host went on meanwhile."""
    updates: int = 0
    """Parameters that a fused AdamW was given."""
    streams: list[str | int] = field(default_factory=list)
    """What the stream of the steps was asked for, in order: to wait for an event (the number of
    copies to the device before it), or to be named as a user of a tensor (``use``)."""

    def fake(self, build: Callable[[], nn.Module]) -> nn.Module:
        """What `build` builds, for real, and then with fake tensors, still on the CPU."""
        with unset_fake_temporarily():
            module = build()
        return module._apply(self.mode.from_tensor)

    def watching(self) -> Watch:
        """Within the block, what is done is added to the lists."""
        return Watch(self)


class Watch(TorchDispatchMode):
    """Sees every operation before the fake tensors do."""

    def __init__(self, cuda: FakeCuda):
        super().__init__()
        self.cuda = cuda

    @classmethod
    def is_infra_mode(cls):
        return True  # without this a compiled network would run uncompiled within the block

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is UPDATE:
            # It changes its arguments in place and returns nothing; torch has no fake of it.
            there = {each.device for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
            assert there == {DEVICE}, there
            self.cuda.updates += len(args[0])
            return None
        out = func(*args, **kwargs)
        if func.overloadpacket in COPIES:
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | kwargs
            source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            way = source.device.type, out.device.type
            if way[0] != way[1]:
                goes_on = given.get("non_blocking", False)
                self.cuda.copies.append(
                    (" to ".join(way), source.dtype, is_pinned(source), goes_on)
                )
        return out


class Stream:
    """Stands for a stream: writes down what is asked for. Here nothing can wait for it."""

    def __init__(self, cuda):
        self.cuda = cuda

    def record_event(self):
        return sum(way == "cpu to cuda" for way, *_ in self.cuda.copies)

    def wait_event(self, event):
        self.cuda.streams.append(event)


def is_pinned(tensor):
    return getattr(tensor, "pinned", False)


def pin_memory(tensor):
    pinned = torch.empty_like(tensor)
    pinned.pinned = True
    return pinned


def apply(module, function, recurse=True):
    """`nn.Module._apply`, which swaps tensors in place and cannot do so with fake ones."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(function(parameter).detach())
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = function(buffer)
    return module


def run_backward(roots, gradients, *_, **__):
    """Backward from one scalar, as the engine does it, which would look for a real GPU's streams.

    Like the engine it sums a gradient to the shape, casts it to the type, and requires the device
    of what it belongs to.
    """
    start, needed = roots[0].grad_fn, Counter()
    seen, found = {start}, [start]
    while found:
        for node, _ in found.pop().next_functions:
            needed[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                found.append(node)
    given, ready = {start: {0: gradients[0]}}, [start]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            slots = given.pop(node)
            out = node(*(slots.get(slot) for slot in range(len(node._input_metadata))))
            out = out if isinstance(out, tuple) else (out,)
            for (target, slot), gradient in zip(node.next_functions, out, strict=True):
                if target is None:
                    continue
                slots = given.setdefault(target, {})
                if gradient is not None:
                    gradient = _fitted(gradient, target._input_metadata[slot])
                    slots[slot] = slots[slot] + gradient if slot in slots else gradient
                needed[target] -= 1
                if not needed[target]:
                    ready.append(target)


def _fitted(gradient, metadata):
    assert gradient.device == metadata.device
    if tuple(gradient.shape) != tuple(metadata.shape):
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.dtype)


@contextlib.contextmanager
def fake_cuda():
    """A fake GPU within the block; see `FakeCuda`."""
    cuda = FakeCuda(FakeTensorMode(allow_fallback_kernels=False))
    side, steps = Stream(cuda), Stream(cuda)
    caches = (d4._turned, feeding.copy_stream)
    flags = [getattr(module, name) for module, name in FLAGS]

    def refuse(*_, **__):
        raise HostWaitsError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "synchronize", refuse)
        patch.setattr(torch.cuda, "Stream", lambda device: side)
        patch.setattr(torch.cuda, "current_stream", lambda: steps)
        patch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        patch.setattr(torch.Tensor, "record_stream", lambda *_: cuda.streams.append("use"))
        patch.setattr(torch.Tensor, "is_pinned", is_pinned)
        patch.setattr(torch.Tensor, "pin_memory", pin_memory)
        patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
        patch.setattr(nn.Module, "_apply", apply)
        for cache in caches:
            cache.cache_clear()
        try:
            yield cuda
        finally:
            for cache in caches:  # they hold fake tensors
                cache.cache_clear()
            for (module, name), value in zip(FLAGS, flags, strict=True):
                setattr(module, name, value)


def planted(function, old, new):
    """A copy of a function in which one piece of its text is another."""
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1, f"{old!r} is not in {function.__qualname__}"
    scope = dict(vars(inspect.getmodule(function)))
    text = "from __future__ import annotations\n" + text.replace(old, new)
    exec(text, scope)
    return scope[function.__name__]
