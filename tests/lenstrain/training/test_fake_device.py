"""Training, validation and scoring on a fake GPU: nothing waits, is elsewhere, or is copied twice.

All of it is the real code down to torch's operations: feeding, augmentation, step, accumulation,
averages, clipping, scaled loss, and the loops around them. An operation that needs the contents of
a tensor raises, and so does one on tensors of two devices.

What this cannot show: numbers (a fake tensor has none); kernels, cuDNN's and inductor's, and
whether one of them waits; the fused AdamW (torch has no fake of it: only where its arguments are is
seen); autograd's own engine (see `run_backward` of the helpers); real streams and pinned memory, of
which only what they are asked for is seen; several processes; memory and time. `make test-gpu`
shows these.
"""

from functools import partial
from itertools import chain

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lenstrain.config import ARCHITECTURES, Config
from lenstrain.data import Batch, StampLoader
from lenstrain.networks.ensemble import Ensemble
from lenstrain.networks.finder import build_model
from lenstrain.training import feeding, step, train, transfer
from lenstrain.training import run as run_module
from lenstrain.training.distributed import Context
from lenstrain.training.signals import StopSignals
from tests.lenstrain.training.fakecuda import (
    DEVICE,
    HostWaitsError,
    fake_cuda,
    planted,
    run_backward,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a real GPU: `make test-gpu`"
)
COPIED = [
    ("cpu to cuda", dtype, True, True)
    for dtype in (torch.float16, torch.int64, torch.int64, torch.float32)
]
"""Copies of a batch (pixels, index, labels, weight): from pinned memory, and the host goes on."""
TABLE = ("cpu to cuda", torch.int64, False, False)
"""The copy of the table of turns, which is made once in a process."""
SMALL = ("model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16")
TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batches(list):
    """Stands for a loader: batches that one has made, and its split."""

    def __init__(self, loader, faked):
        super().__init__(Batch(*map(faked, batch)) for batch in loader)
        self.data = loader.data

    def set_epoch(self, epoch):
        pass


@pytest.fixture
def cuda():
    with fake_cuda() as cuda:
        yield cuda


@pytest.fixture
def make_run(cuda, dataset, tmp_path, monkeypatch):
    """Builds a run on the fake GPU: two batches to train on, the last one filled, two to score."""
    loaders = [
        Batches(loader, cuda.mode.from_tensor)
        for loader in (
            StampLoader(dataset, "train", 12, limit=20),
            StampLoader(dataset, "val", 20, shuffle=None),
        )
    ]
    monkeypatch.setattr(run_module, "build_model", lambda *of: cuda.fake(partial(build_model, *of)))
    monkeypatch.setattr(run_module, "make_loaders", lambda *_: loaders)

    def make(*overrides):
        options = ("data.batch_size=12", "eval.batch_size=20", "optim.ema_decay=0.9",
                   "train.log_every=1000", *overrides)  # fmt: skip
        config = load_config(Config, None, options)
        with cuda.mode:
            return run_module.build_run(
                Dataset.open(dataset), config, tmp_path, Context(device=DEVICE), None
            )

    return make


def train_epoch(run, cuda):
    with cuda.mode, cuda.watching():
        train.train_epoch(run, StopSignals())


def check_transfers(cuda, batches):
    """Four copies a batch and no other; no step begins before its batch is there, or loses it."""
    assert cuda.copies == COPIED * batches
    expected = ([4 * number, *["use"] * 4] for number in range(1, batches + 1))
    assert cuda.streams == [*chain.from_iterable(expected)]


NETWORKS = [
    ("resnet_small", "off", 1, 1),
    ("resnet_small", "bf16", 2, 2),
    ("resnet_small", "fp16", 2, 1),
    *((arch, "bf16", 1, 1) for arch in ARCHITECTURES if arch != "resnet_small"),
]
"""Name, precision, parts of a batch, and batches."""
QUICK = (("resnet_small", True), ("resnet_small", False), ("resnet18", False))
"""Networks, compiled or not, of which an epoch takes no more than two seconds of a core."""


@pytest.mark.parametrize(
    ("arch", "amp", "accumulate", "batches", "compiled"),
    [
        pytest.param(
            *network, compiled, marks=[pytest.mark.slow] * ((network[0], compiled) not in QUICK)
        )
        for compiled in (False, True)
        for network in NETWORKS
    ],
)
def test_an_epoch_waits_for_nothing_and_copies_every_batch_once(
    make_run, cuda, graphs, arch, amp, accumulate, batches, compiled
):
    run = make_run(
        f"model.arch={arch}", f"train.amp={amp}", f"train.compile={compiled}".lower(),
        f"optim.accumulate={accumulate}", "data.shift_px=2",
    )  # fmt: skip
    del run.train_loader[batches:]
    train_epoch(run, cuda)
    learner = run.learner
    assert (learner.steps, learner.amp_dtype) == (batches, TYPES[amp])
    assert learner.scaler.is_enabled() == (amp == "fp16")
    assert len(graphs) == compiled
    check_transfers(cuda, batches)
    assert cuda.updates == batches * len(list(learner.model.parameters()))
    states = (learner.model.state_dict(), learner.average.state, *learner.optimizer.state.values())
    found = [value for state in states for value in state.values()]
    found += [group["lr"] for group in learner.optimizer.param_groups]
    found += [learner.rates, learner.updates, run.totals.sums, run.totals.bad_index]
    assert {value.device for value in found} == {DEVICE}


def test_the_table_of_turns_is_copied_once(make_run, cuda):
    run = make_run(*SMALL)
    train_epoch(run, cuda)
    assert cuda.copies == [*COPIED[:2], TABLE, *COPIED[2:], *COPIED]
    cuda.copies.clear()
    cuda.streams.clear()
    run.epochs_done += 1
    train_epoch(run, cuda)
    check_transfers(cuda, 2)


def test_the_line_of_the_log_is_the_first_to_wait(make_run, cuda):
    run = make_run(*SMALL, "train.log_every=2")
    with pytest.raises(DataDependentOutputException):
        train_epoch(run, cuda)
    assert run.learner.steps == 2


# Where a name is looked up, the function, a piece of its text, and what it is replaced by.
RAISING = {
    "a number is read": (
        (train, step.train_step, "learner.steps += 1", "learner.steps += int(weight > 0)"),
        DataDependentOutputException,
    ),
    "a branch is taken": (
        (step, step._update, "if not scaler.is_enabled():", "if not finite:"),
        DataDependentOutputException,
    ),
    "rows are chosen by a mask": (
        (train, step.train_step, "batch.weight.sum()", "batch.weight[batch.weight > 0].sum()"),
        DynamicOutputShapeException,
    ),
    "a tensor is on the CPU": (
        (step, step._loss_sum, "batch.weight)", "torch.ones(len(batch.weight)))"),
        FakeTensorDeviceMismatchError,
    ),
    "the host waits for all": (
        (train, step.train_step, "weight = ", "torch.cuda.synchronize(); weight = "),
        HostWaitsError,
    ),
}
VISIBLE = {
    "a tensor goes by way of the host": (
        train, step.train_step,
        "batch.weight.sum()", "batch.weight.cpu().sum().to(batch.weight.device)",
    ),
    "a tensor is made of a number": (
        train, step.train_step,
        "torch.zeros_like(weight)", "torch.tensor(0.0, device=weight.device)",
    ),
    "a batch is not pinned": (feeding, transfer.send, "value.pin_memory()", "value"),
    "a copy blocks": (feeding, transfer.send, "device, non_blocking=True", "device"),
    "a batch is copied in float32": (
        feeding, feeding.to_device,
        "send(batch.pixels, device)", "send(batch.pixels.float(), device)",
    ),
    "a step does not wait for its batch": (
        train, feeding.device_batches, "steps.wait_event(copied)", "pass",
    ),
    "memory of a batch is lent again too early": (
        train, feeding.device_batches, "tensor.record_stream(steps)", "pass",
    ),
}  # fmt: skip


def plant(monkeypatch, place, function, old, new):
    monkeypatch.setattr(place, function.__name__, planted(function, old, new))


@pytest.mark.parametrize("fault", RAISING)
def test_a_planted_fault_raises(make_run, cuda, monkeypatch, fault):
    change, error = RAISING[fault]
    plant(monkeypatch, *change)
    run = make_run(*SMALL, "data.shift_px=2")
    with pytest.raises(error):
        train_epoch(run, cuda)


@pytest.mark.parametrize("fault", VISIBLE)
def test_a_planted_fault_is_seen_in_what_was_transferred(make_run, cuda, monkeypatch, fault):
    plant(monkeypatch, *VISIBLE[fault])
    run = make_run(*SMALL, "data.shift_px=2")
    train_epoch(run, cuda)
    with pytest.raises(AssertionError):
        check_transfers(cuda, 2)


def test_a_validation_waits_only_when_all_is_scored(make_run, cuda):
    run = make_run(*SMALL)
    with cuda.mode, cuda.watching(), pytest.raises(DynamicOutputShapeException):
        train.validate(run, StopSignals())  # whether a row is missing, the scores themselves tell
    there, back = cuda.copies[: 4 * 2], cuda.copies[4 * 2 :]
    assert sorted(there, key=str) == sorted(COPIED * 2, key=str)
    assert {way for way, *_ in back} == {"cuda to cpu"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_and_embeddings_stay_on_the_device(cuda, arch):
    configs = [load_config(Config, None, options) for options in ([f"model.arch={arch}"], SMALL)]
    with cuda.mode, torch.inference_mode(), cuda.watching():
        members = [cuda.fake(partial(build_model, c.model)).to(DEVICE) for c in configs]
        model = Ensemble(members, tta=True, embeddings=True).eval()
        cuda.copies.clear()
        for _ in range(2):
            pixels = torch.empty((5, 3, 64, 64), dtype=torch.float16)
            x_BCHW = transfer.widen(transfer.send(pixels, DEVICE), channels_last=True)
            logit_BM, features = model(x_BCHW)
    assert cuda.copies == [COPIED[0], TABLE, COPIED[0]]
    assert (logit_BM.shape, logit_BM.dtype) == ((5, 2), torch.float32)
    assert {each.device for each in (logit_BM, *features)} == {DEVICE}


def test_the_backward_pass_of_the_helpers_is_autograds(monkeypatch):
    config = load_config(Config, None, SMALL)
    model, pixels = build_model(config.model), torch.randn(4, 3, 64, 64)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        for part in pixels.split(2):  # gradients add up
            model(part).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        monkeypatch.setattr(torch.autograd, "_engine_run_backward", run_backward)
    torch.testing.assert_close(*gradients)
