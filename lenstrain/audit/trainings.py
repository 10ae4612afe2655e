"""Short trainings: on 64 stamps, on permuted labels, interrupted, and scoring on two processes."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
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
from lensprep.dataset import DECALS, Dataset, Geometry
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
from lenstrain.training.run import Event, seeded
from lenstrain.training.runlog import CHECKPOINTS
from lenstrain.training.train import train
from lenstrain.training.validate import full_float32

BATCH = 64
_PROCESS_TIMEOUT_S = 600
_SIDECAR = ("key", "label", "region_id")


def require_allowed(evidence: Evidence) -> None:
    """Refuse unless the short trainings were asked for."""
    if not evidence.run_checks:
        raise NotRunError("A short training; give `--run-checks` to run it (minutes on a CPU).")


def check_overfit_64(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Train the run's network on 64 stamps without smoothing, dropout or augmentation."""
    require_allowed(evidence)
    limits = config.run
    labels = evidence.sidecar("train", ["label"])["label"].to_numpy()
    index = _some_of_each(labels, BATCH, np.random.default_rng(config.seed))
    rows, labels = evidence.rows_of("train")[index], labels[index]
    pixels = evidence.dataset.read_pixels("train", rows)
    if len(np.unique(labels)) < 2:
        raise NotRunError("train has one class only.")
    loss, steps, _ = fit(
        evidence.config.model,
        pixels,
        labels,
        limits.overfit_steps,
        config,
        geometry=evidence.dataset.geometry,
        enough=limits.overfit_loss,
    )
    passed = loss < limits.overfit_loss
    return Outcome(
        passed=passed,
        measured={"loss": loss, "steps": steps, "stamps": len(labels)},
        threshold=limits.overfit_loss,
        detail=f"Loss {loss:.4f} on {len(labels)} stamps after {steps} steps.",
    )


def fit(
    model_config: ModelConfig,
    pixels: NDArray[np.float16],
    labels: NDArray[Any],
    steps: int,
    config: AuditConfig,
    *,
    geometry: Geometry = DECALS,
    enough: float = 0.0,
) -> tuple[float, int, Scorer]:
    """Train a new network on batches of 64 stamps until its loss is below `enough` or not a number.

    Returns
    -------
    loss : float
        Of the last batch.
    steps : int
        Steps that it took, at most `steps`.
    scorer : Scorer
        The trained network.
    """
    device = choose_device(config.run.device)
    with seeded(config.seed, device), full_float32():
        plain = replace(model_config, weights=None, dropout=0.0)
        model = build_model(plain, geometry).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
        rng = np.random.default_rng(config.seed)
        loss, step = math.inf, 0
        while step < steps and loss >= enough:
            batch = rng.choice(len(labels), min(BATCH, len(labels)), replace=False)
            x_BCHW = torch.from_numpy(pixels[batch].astype(np.float32)).to(device)
            y_B = torch.from_numpy(labels[batch].astype(np.float32)).to(device)
            optimizer.zero_grad()
            value = nn.functional.binary_cross_entropy_with_logits(model(x_BCHW), y_B)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss, step = float(value.detach()), step + 1
    return loss, step, Scorer(model.eval(), device)


def check_permuted_labels(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Train on labels drawn at random for each image; those of held-out images must stay unknown.

    An image has the same random label wherever it occurs. If the same image is in train and in
    val, or anything but its pixels reveals a row's label, the AUROC differs from 0.5.
    """
    require_allowed(evidence)
    limits = config.run
    (pixels, images), (held_out, others) = (
        _draw(evidence, split, limits.permuted_rows) for split in ("train", "val")
    )
    known, truth = random_labels(images, others, config.seed)
    geometry = evidence.dataset.geometry
    steps = limits.permuted_steps
    scorer = fit(evidence.config.model, pixels, known, steps, config, geometry=geometry)[2]
    area = auroc(roc_curve(truth, scorer(held_out)))
    error = auroc_error(int((truth == 1).sum()), int((truth == 0).sum()))
    distance = abs(area - 0.5) / error
    allowed = limits.standard_errors
    return Outcome(
        passed=distance <= allowed,
        measured={"auroc": area, "standard_error": error, "distance": distance,
                  "train": len(known), "val": len(truth)},
        threshold={"standard_errors": allowed},
        detail=f"AUROC {area:.3f} on held-out images with random labels, {distance:.1f} standard "
        "errors from chance.",
    )  # fmt: skip


def random_labels(
    train_hash: NDArray[np.uint64], val_hash: NDArray[np.uint64], seed: int
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """One random label for every distinct image, half of them lenses."""
    _, image = np.unique(np.concatenate([train_hash, val_hash]), return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(np.arange(image.max() + 1) % 2)
    label = drawn[image].astype(np.int8)
    return label[: len(train_hash)], label[len(train_hash) :]


def check_resume(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Train twice on a few stamps, once interrupted in mid-epoch, and compare all bits."""
    require_allowed(evidence)
    with tempfile.TemporaryDirectory(prefix="lenstrain-audit-") as name:
        folder = Path(name)
        uri = write_part(evidence.dataset, folder / "ds", config.run.check_rows, config.seed)
        short = short_config(evidence.config)
        train(uri, short, folder / "straight")
        train(uri, short, folder / "resumed", progress=_StopAt(3))
        train(uri, short, folder / "resumed", resume=True)
        straight, resumed = (load_checkpoint(folder / run / CHECKPOINTS / LAST)
                             for run in ("straight", "resumed"))  # fmt: skip
    different = different_tensors(straight, resumed)
    return Outcome(
        passed=not different,
        measured={"different_tensors": len(different), "steps": straight["step"]},
        threshold=0,
        detail=f"A run of {straight['step']} steps that was stopped and resumed "
        + (f"differs in {len(different)} tensors, first {different[0]}." if different
           else "ends in the same bits as one that was not."),
    )  # fmt: skip


class _StopAt:
    """Send this process SIGTERM after some steps, as a machine does that is being reclaimed."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def __call__(self, event: Event) -> None:
        self.seen += event.stage == "train"
        if self.seen == self.step and event.stage == "train":
            signal.raise_signal(signal.SIGTERM)


def short_config(config: Config) -> Config:
    """The run's configuration for two short epochs on a CPU.

    Of ordinary rows, and steered by their AUROC: some rows of a dataset need not hold a pair.
    """
    return replace(
        config,
        data=replace(
            config.data,
            batch_size=32,
            where=None,
            limit=None,
            sample_weights=None,
            rates={},
            cache_dir=None,
            counterfactual_share=0.0,
        ),
        model=replace(config.model, weights=None),
        train=replace(
            config.train,
            epochs=2,
            device="cpu",
            amp="auto",
            compile=False,
            checkpoint_minutes=0.0,
            patience=0,
            monitor="auroc",
            checkpoint_copy=None,
            pictures=False,
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
        + ("all logits are equal." if gap == 0 else
           f"largest difference of a logit {gap:.1e}." if same_rows
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
        rng = np.random.default_rng([seed, number])
        index = _some_of_each(table["label"].to_numpy(), rows, rng)
        names = [name for name in table.column_names if name != "payload_crc32"]
        parts[split] = (dataset.read_pixels(split, index), table.select(names).take(index))
    manifest = dataset.manifest
    write_dataset(
        out,
        parts,
        manifest.normalization,
        shard_rows=128,
        geometry=manifest.geometry,
        label_map=manifest.label_map,
    )
    return str(out)


def _some_of_each(labels: NDArray[Any], rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Up to `rows` rows, half of them of either class, in order."""
    classes = [np.flatnonzero(labels == k) for k in (0, 1)]
    chosen = [rng.choice(of_class, min(len(of_class), (rows + k) // 2), replace=False)
              for k, of_class in enumerate(classes)]  # fmt: skip
    return np.sort(np.concatenate(chosen))


def _draw(
    evidence: Evidence, split: str, rows: int
) -> tuple[NDArray[np.float16], NDArray[np.uint64]]:
    hashes = hash_numbers(evidence.sidecar(split, ["pixel_hash"])["pixel_hash"].to_pylist())
    # The smallest hashes are a random sample, and the same images in both splits.
    index = np.sort(np.argsort(hashes, kind="stable")[:rows])
    return evidence.dataset.read_pixels(split, evidence.rows_of(split)[index]), hashes[index]
