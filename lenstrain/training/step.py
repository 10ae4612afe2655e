"""One optimiser step, and everything that a step changes. Nothing here waits for the device.

What the host wants to know of a step (loss, norm, whether it was finite) is added up on the
device, in `Totals`, and read once an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lensprep.errors import ConfigError
from lenstrain.config import Config, LossConfig, OptimConfig
from lenstrain.training.distributed import Context
from lenstrain.training.loss import loss_per_stamp, weighted_sum
from lenstrain.training.schedule import ema_decay, learning_rates

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One process's share of a global batch, on the device."""

    pixels: Tensor
    """x_BCHW, normalised pixels, float32."""
    label: Tensor
    """0 or 1, shape (B,)."""
    weight: Tensor
    """float32, shape (B,); 0 marks a filler, which adds nothing to loss or gradient."""
    index: Tensor
    """int64, shape (B,): positions in the split."""


Phase = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of a phase of a step, which runs in the context that it returns."""


class Totals:
    """Sums over steps, on the device, and the rows of the first step with a non-finite loss."""

    NAMES = ("loss", "weight", "norm", "steps", "updates", "clipped", "nonfinite")

    def __init__(self, device: torch.device, rows: int) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.bad_index = torch.full((rows,), -1, dtype=torch.int64, device=device)

    def add(self, *, loss: Tensor, weight: Tensor, norm: Tensor, clip_norm: float) -> None:
        """Add a step: sums of its loss and weight, and the norm of its gradient before clipping."""
        finite = torch.isfinite(norm)
        bad = ~torch.isfinite(loss)
        clipped = finite & (norm > clip_norm) if clip_norm else torch.zeros_like(finite)
        norm = torch.where(finite, norm, torch.zeros_like(norm))
        loss = torch.where(bad, torch.zeros_like(loss), loss)
        one = torch.ones_like(norm)
        values = (loss, weight, norm, one, finite, clipped, bad)
        self.sums += torch.stack([value.to(torch.float64) for value in values])

    def remember(self, loss: Tensor, index_B: Tensor) -> None:
        """Keep the rows of the first step whose loss is not finite."""
        first = ~torch.isfinite(loss) & (self.bad_index[0] < 0)
        kept = self.bad_index[: len(index_B)]
        kept.copy_(torch.where(first, index_B, kept))

    def read(self) -> dict[str, float]:
        """The sums as numbers: this waits for the device."""
        return dict(zip(self.NAMES, self.sums.tolist(), strict=True))


class Average:
    """Exponential moving average of a model: parameters and batch statistics alike.

    Batch statistics are averaged with the same decay as the weights that they belong to: with the
    last statistics the averaged weights would be normalised by another network's. Counters are
    copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, update: int) -> None:
        """Take in the model after its update number `update` (from 0)."""
        source = model.state_dict()
        floats = [name for name, value in source.items() if value.is_floating_point()]
        mine, theirs = [self.state[n] for n in floats], [source[n] for n in floats]
        torch._foreach_lerp_(mine, theirs, 1 - ema_decay(update, self.decay))
        for name in source.keys() - set(floats):
            self.state[name].copy_(source[name])


@dataclass(kw_only=True, slots=True)
class Learner:
    """Everything that a step changes."""

    model: nn.Module
    """The bare model: its state dict is what is saved."""
    network: nn.Module
    """The model as called in training: compiled, or spread over processes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss under fp16; does nothing otherwise."""
    average: Average | None
    """Averaged weights, if the run keeps them."""
    rates: Tensor
    """Learning rate of every update of the run, float32, on the device."""
    updates: Tensor
    """Updates made so far, int64 scalar on the device; skipped steps do not count."""
    amp_dtype: torch.dtype | None
    """Precision of the network in training; None is float32."""
    steps: int = 0
    """Steps taken so far, skipped or not."""

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.average is None else self.average.state,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "scheduler": {"updates": int(self.updates), "total_updates": len(self.rates)},
            "step": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            for name, value in state["ema"].items():
                self.average.state[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"]).to(self.rates)
        # Empty if the run came from a device without a scaled loss: then scaling starts anew.
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.updates.fill_(state["scheduler"]["updates"])
        self.steps = state["step"]


def make_learner(
    model: nn.Module, config: Config, steps_per_epoch: int, context: Context
) -> Learner:
    """Put a model, the same in every process, on its device and add an optimiser."""
    device = context.device
    model = model.to(device)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.train.sync_batchnorm and context.world_size > 1:
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        model = convert(model)
    # Every size of batch is its own graph: one for sizes in general (torch's choice from the second
    # on) is slower, and training has one size, or two that differ by a stamp (see `_chunks`).
    network: Any = torch.compile(model, dynamic=False) if config.train.compile else model
    if context.grouped:
        ids = [device.index] if device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)
    amp_dtype = choose_amp(config.train.amp, device)
    rates = learning_rates(
        peak=config.optim.lr,
        floor=config.optim.min_lr,
        warmup_epochs=config.optim.warmup_epochs,
        epochs=config.train.epochs,
        steps_per_epoch=steps_per_epoch,
    )
    return Learner(
        model=model,
        network=network,
        optimizer=make_optimizer(model, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16),
        average=Average(model, config.optim.ema_decay) if config.optim.ema_decay else None,
        rates=torch.tensor(rates, dtype=torch.float32, device=device),
        updates=torch.zeros((), dtype=torch.int64, device=device),
        amp_dtype=amp_dtype,
    )


def choose_amp(amp: str, device: torch.device) -> torch.dtype | None:
    """Precision of the network: bf16 where a GPU has it, fp16 on older ones, None on CPUs."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        # Emulated bf16 on a V100 is slower than float32.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return AMP_DTYPES.get(amp)


def check_precision(amp: str, device: str) -> None:
    """Refuse fp16 on a CPU, where one step of a real network can take minutes.

    Parameters
    ----------
    amp : str
        ``train.amp``.
    device : {"cpu", "cuda"}

    Raises
    ------
    ConfigError
    """
    if amp == "fp16" and device == "cpu":
        raise ConfigError(
            "train.amp is 'fp16', which is for GPUs: a CPU only emulates it, and "
            "a step can take minutes. Set train.amp=auto, which is float32 on a CPU."
        )


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with decay where it belongs.

    Weights of convolutions and linear layers decay; biases, norms and layer scales do not. The
    learning rate is a tensor on the device, so that setting it does not wait.
    """
    decayed, free = split_parameters(model)
    device = next(model.parameters()).device
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [{**g, "lr": torch.tensor(config.lr, device=device)} for g in groups if g["params"]]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=torch.tensor(config.lr), betas=betas, fused=True)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that decay, and those that do not."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    decaying = {id(layer.weight) for layer in layers}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if id(p) in decaying]
    return decayed, [p for p in parameters if id(p) not in decaying]


def train_step(
    learner: Learner,
    batch: StepBatch,
    totals: Totals,
    config: Config,
    context: Context,
    phase: Phase = nullcontext,
) -> None:
    """Make one step: rate, forward, backward, clip, update, average. Nothing waits for the device.

    A gradient that is not finite moves nothing and does not advance the schedule. The loss is the
    mean over the global batch: sums by weight here, divided by the weight of all processes.

    Parameters
    ----------
    learner : Learner
        Changed in place.
    batch : StepBatch
        This process's share of the global batch.
    totals : Totals
        Where the step is recorded.
    config : Config
        Its loss, ``optim.clip_norm`` and ``optim.accumulate`` are used.
    context : Context
    phase : callable
        Gives the contexts in which ``forward``, ``backward`` and ``optimizer`` run, for whoever
        times them.
    """
    clip_norm = config.optim.clip_norm
    set_rate(learner)
    learner.optimizer.zero_grad(set_to_none=True)
    weight = batch.weight.sum()
    # Gradients are averaged over processes, so that the number of processes has to be undone.
    scale = context.world_size / context.sum(weight.clone()).clamp(min=1)
    loss_sum = torch.zeros_like(weight)
    for chunk, sync in _chunks(learner.network, batch, config.optim.accumulate):
        with sync:
            with phase("forward"):
                chunk_sum = _loss_sum(learner, chunk, config.loss)
                scaled: Any = learner.scaler.scale(chunk_sum * scale)
            with phase("backward"):
                scaled.backward()
            loss_sum += chunk_sum.detach()
    with phase("optimizer"):
        norm = _update(learner, clip_norm)
    totals.remember(loss_sum, batch.index)
    totals.add(loss=loss_sum, weight=weight, norm=norm, clip_norm=clip_norm)
    if learner.average is not None:
        learner.average.update(learner.model, learner.steps)
    learner.steps += 1


def set_rate(learner: Learner) -> None:
    """Set the learning rate of the coming update, on the device, in every parameter group."""
    last = learner.rates.numel() - 1
    rate = learner.rates.index_select(0, learner.updates.clamp(max=last).view(1))[0]
    for group in learner.optimizer.param_groups:
        group["lr"].copy_(rate)


def _chunks(
    network: Any, batch: StepBatch, count: int
) -> Iterator[tuple[StepBatch, AbstractContextManager[Any]]]:
    """Chunks whose sizes differ by one at most; processes exchange gradients in the last only.

    So no chunk has batch statistics of a few stamps, and a compiled network at most two graphs.
    """
    fields = (batch.pixels, batch.label, batch.weight, batch.index)
    count = min(count, len(batch.index))
    *first, last = zip(*(field.tensor_split(count) for field in fields), strict=True)
    for chunk in first:
        alone = not isinstance(network, DistributedDataParallel)
        yield StepBatch(*chunk), nullcontext() if alone else network.no_sync()
    yield StepBatch(*last), nullcontext()


def _loss_sum(learner: Learner, batch: StepBatch, loss: LossConfig) -> Tensor:
    device = batch.pixels.device.type
    with torch.autocast(device, learner.amp_dtype, enabled=learner.amp_dtype is not None):
        logit_B = learner.network(batch.pixels)
    return weighted_sum(loss_per_stamp(logit_B, batch.label, loss), batch.weight)


def _update(learner: Learner, clip_norm: float) -> Tensor:
    """Unscale, clip and step; returns the norm before clipping."""
    optimizer, scaler = learner.optimizer, learner.scaler
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf"))
    finite = torch.isfinite(norm)
    if not scaler.is_enabled():
        # With 1 the fused kernel changes nothing, as under a loss scaler.
        optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
    scaler.step(optimizer)
    scaler.update()
    learner.updates += finite
    return norm
