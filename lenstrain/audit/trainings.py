"""Checks that train for a minute: on 64 stamps, on permuted labels, cut off, on two processes."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from lensprep.checks.finding import auroc_error
from lensprep.dataset import Dataset
from lensprep.dataset.writer import write_dataset
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.data import hash_numbers
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.config import Config, ModelConfig
from lenstrain.evaluation.metrics import auroc, roc_curve
from lenstrain.networks.finder import build_model
from lenstrain.probes.scoring import Scorer
from lenstrain.training.checkpoint import LAST, load_checkpoint
from lenstrain.training.distributed import choose_device
from lenstrain.training.run import Event
from lenstrain.training.runlog import CHECKPOINTS
from lenstrain.training.train import train

STAMPS = 64
_BATCH = 64
_PROCESS_TIMEOUT_S = 600
_SIDECAR = ("key", "label", "region_id")


def require_allowed(evidence: Evidence) -> None:
    """Refuse unless the short trainings were asked for."""
    if not evidence.run_checks:
        raise NotRunError("A short training; give --run-checks to run it (minutes on a CPU).")


def check_overfit_64(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Train the run's network on 64 stamps without smoothing, dropout or augmentation."""
    require_allowed(evidence)
    pixels, labels = _balanced(evidence.dataset, "train", STAMPS, config.seed)
    limit = config.run.overfit_loss
    loss, steps = overfit(
        evidence.config.model, pixels, labels, limit, config.run.overfit_steps, config
    )
    return Outcome(
        passed=loss < limit,
        measured={"loss": loss, "steps": steps, "stamps": len(labels)},
        threshold=limit,
        detail=f"Loss {loss:.4f} on {len(labels)} stamps after {steps} steps."
        + ("" if loss < limit else " The network, the loss or the labels are broken."),
    )


def overfit(
    model_config: ModelConfig,
    pixels: NDArray[np.float16],
    labels: NDArray[Any],
    limit: float,
    steps: int,
    config: AuditConfig,
) -> tuple[float, int]:
    """Train on one batch until its loss falls below a limit; return loss and steps."""
    with _own_generator(config.seed):
        model = build_model(replace(model_config, weights=None, dropout=0.0))
        device = choose_device(config.run.device)
        model.to(device).train()
        x_BCHW = torch.from_numpy(pixels.astype(np.float32)).to(device)
        y_B = torch.from_numpy(labels.astype(np.float32)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
        loss = math.inf
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            value = nn.functional.binary_cross_entropy_with_logits(model(x_BCHW), y_B)
            loss = float(value.detach())
            if not loss >= limit:  # also if it is NaN
                return loss, step
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return loss, steps


def check_permuted_labels(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Train on labels drawn at random for each image; held-out images must stay unknown.

    An image has one random label wherever it comes. If the same image is in train and in val, or
    a row tells its label by anything but its pixels, the AUROC leaves 0.5.
    """
    require_allowed(evidence)
    rows = config.run.permuted_rows
    train_rows, val_rows = (_draw(evidence, split, rows) for split in ("train", "val"))
    label = random_labels(train_rows[1], val_rows[1], config.seed)
    area = memorise(
        evidence.config.model, train_rows[0], label[0], val_rows[0], config.run.permuted_steps,
        config,
    )(label[1])  # fmt: skip
    error = auroc_error(int((label[1] == 1).sum()), int((label[1] == 0).sum()))
    distance = abs(area - 0.5) / error
    allowed = config.run.standard_errors
    return Outcome(
        passed=distance <= allowed,
        measured={"auroc": area, "standard_error": error, "distance": distance,
                  "train": len(label[0]), "val": len(label[1])},
        threshold={"standard_errors": allowed},
        detail=f"AUROC {area:.3f} on held-out images with random labels, {distance:.1f} standard "
        "errors from chance."
        + ("" if distance <= allowed else " Train and val share images, or labels leak."),
    )  # fmt: skip


def random_labels(
    train_hash: NDArray[np.uint64], val_hash: NDArray[np.uint64], seed: int
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """One random label for every distinct image, half of them lenses."""
    _, image = np.unique(np.concatenate([train_hash, val_hash]), return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(np.arange(image.max() + 1) % 2)
    label = drawn[image].astype(np.int8)
    return label[: len(train_hash)], label[len(train_hash) :]


def memorise(
    model_config: ModelConfig,
    pixels: NDArray[np.float16],
    labels: NDArray[np.int8],
    held_out: NDArray[np.float16],
    steps: int,
    config: AuditConfig,
) -> Any:
    """Train on some labels; return a function from labels of `held_out` to the AUROC there."""
    with _own_generator(config.seed):
        device = choose_device(config.run.device)
        model = build_model(replace(model_config, weights=None, dropout=0.0)).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
        rng = np.random.default_rng(config.seed)
        for _ in range(steps):
            part = rng.choice(len(labels), min(_BATCH, len(labels)), replace=False)
            x_BCHW = torch.from_numpy(pixels[part].astype(np.float32)).to(device)
            y_B = torch.from_numpy(labels[part].astype(np.float32)).to(device)
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(x_BCHW), y_B)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        logits = Scorer(model.eval(), device)(held_out)
    return lambda truth: auroc(roc_curve(truth, logits))


def check_resume(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Train twice on a few stamps, once cut off in the middle of an epoch, and compare all bits."""
    require_allowed(evidence)
    with tempfile.TemporaryDirectory(prefix="lenstrain-audit-") as name:
        folder = Path(name)
        uri = write_part(evidence.dataset, folder / "ds", config.run.check_rows, config.seed)
        short = short_config(evidence.config)
        train(uri, short, folder / "straight")
        train(uri, short, folder / "resumed", progress=_StopAt(3))
        train(uri, short, folder / "resumed", resume=True)
        pair = [load_checkpoint(folder / run / CHECKPOINTS / LAST)
                for run in ("straight", "resumed")]  # fmt: skip
    different = different_tensors(pair[0], pair[1])
    return Outcome(
        passed=not different,
        measured={"different_tensors": len(different), "steps": pair[0]["step"]},
        threshold=0,
        detail=f"A run of {pair[0]['step']} steps that was stopped and resumed "
        + (f"differs in {len(different)} tensors, first {different[0]}." if different
           else "ends in the same bits as one that was not."),
    )  # fmt: skip


class _StopAt:
    """Send this process SIGTERM after some steps, as a machine does that is taken back."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def __call__(self, event: Event) -> None:
        self.seen += event.stage == "train"
        if self.seen == self.step and event.stage == "train":
            signal.raise_signal(signal.SIGTERM)


def short_config(config: Config) -> Config:
    """The run's configuration for two short epochs on a CPU."""
    return replace(
        config,
        data=replace(config.data, batch_size=32, where=None, limit=None, cache_dir=None),
        model=replace(config.model, weights=None),
        train=replace(
            config.train,
            epochs=2,
            device="cpu",
            amp="auto",
            compile=False,
            checkpoint_minutes=0.0,
            patience=0,
            checkpoint_copy=None,
        ),
        eval=replace(config.eval, split="val", batch_size=64),
    )


def different_tensors(first: Any, second: Any, name: str = "") -> list[str]:
    """Names of tensors and numbers in model, average and optimiser that are not bit-equal."""
    if not name:
        keys = ("model", "ema", "optimizer", "scheduler", "step")
        return [n for key in keys for n in different_tensors(first[key], second[key], key)]
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [name]
        return [n for k in first for n in different_tensors(first[k], second[k], f"{name}/{k}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [name]
        pairs = enumerate(zip(first, second, strict=True))
        return [n for i, (a, b) in pairs for n in different_tensors(a, b, f"{name}/{i}")]
    return [] if first == second else [name]


def check_ddp_eval(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Score a few stamps with the best checkpoint on one process and on two under torchrun."""
    require_allowed(evidence)
    with tempfile.TemporaryDirectory(prefix="lenstrain-audit-") as name:
        folder = Path(name)
        uri = write_part(evidence.dataset, folder / "ds", config.run.check_rows, config.seed)
        one, two = (
            _infer(evidence.checkpoint_path, uri, folder / f"{n}.parquet", n) for n in (1, 2)
        )
    return compare_logits(one, two)


def compare_logits(one: pa.Table, two: pa.Table) -> Outcome:
    """Compare scores of the same rows, whatever their order."""
    first, second = (
        dict(zip(t["key"].to_pylist(), t["logit"].to_pylist(), strict=True)) for t in (one, two)
    )
    same_rows = first.keys() == second.keys() and one.num_rows == two.num_rows == len(first)
    gap = max((abs(first[k] - second[k]) for k in first), default=0.0) if same_rows else math.inf
    # Other batches add up in another order: float32 rounding, and no more.
    allowed = 1e-5 * max(1.0, max((abs(v) for v in first.values()), default=1.0))
    return Outcome(
        passed=same_rows and gap <= allowed,
        measured={"rows": [one.num_rows, two.num_rows],
                  "max_abs_difference": None if math.isinf(gap) else gap},
        threshold={"rows": "the same", "max_abs_difference": allowed},
        detail=f"{one.num_rows} and {two.num_rows} rows on one and two processes; "
        + (f"largest difference of a logit {gap:.1e}." if same_rows
           else "not the same rows: some are lost or repeated."),
    )  # fmt: skip


def _infer(checkpoint: Path, uri: str, out: Path, processes: int) -> pa.Table:
    program = ["-m", "lenstrain", "infer", str(checkpoint), uri, "--split", "val", "--out",
               str(out), "--device", "cpu", "--batch-size", "32"]  # fmt: skip
    if processes > 1:
        program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                   str(processes), *program]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, timeout=_PROCESS_TIMEOUT_S
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        last = next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1])
        raise NotRunError(f"Scoring on {processes} processes failed: {last}")
    return pq.read_table(out)


def write_part(dataset: Dataset, out: Path, rows: int, seed: int) -> str:
    """Write a small dataset of some rows of train and val; return where it is."""
    parts = {}
    for number, split in enumerate(("train", "val")):
        table = dataset.read_sidecar(split)
        labels = table["label"].to_numpy()
        rng = np.random.default_rng([seed, number])
        half = [np.flatnonzero(labels == k) for k in (0, 1)]
        chosen = [rng.choice(h, min(len(h), rows // 2 + k), replace=False)
                  for k, h in enumerate(half)]  # fmt: skip
        index = np.sort(np.concatenate(chosen))
        names = [name for name in table.column_names if name != "payload_crc32"]
        part = table.select(names).take(pa.array(index))
        parts[split] = (dataset.read_pixels(split, index), part)
    write_dataset(out, parts, dataset.manifest.normalization, shard_rows=128)
    return str(out)


def _balanced(
    dataset: Dataset, split: str, n: int, seed: int
) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    labels = dataset.read_sidecar(split, ["label"])["label"].to_numpy()
    rng = np.random.default_rng(seed)
    halves = [np.flatnonzero(labels == k) for k in (0, 1)]
    if min(map(len, halves)) == 0:
        raise NotRunError(f"{split} has one class only.")
    index = np.sort(
        np.concatenate([rng.choice(h, min(len(h), n // 2), replace=False) for h in halves])
    )
    return dataset.read_pixels(split, index), labels[index]


def _draw(
    evidence: Evidence, split: str, rows: int
) -> tuple[NDArray[np.float16], NDArray[np.uint64]]:
    hashes = hash_numbers(evidence.sidecar(split, ["pixel_hash"])["pixel_hash"].to_pylist())
    # The smallest hashes are a random sample, and the same images in both splits.
    index = np.sort(np.argsort(hashes, kind="stable")[:rows])
    return evidence.dataset.read_pixels(split, index), hashes[index]


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Draw from a generator of its own inside the block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
