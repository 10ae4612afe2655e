"""Score a whole split, every row once, on any number of processes; and in which precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lensprep.errors import ConfigError, DatasetError
from lenstrain.config import Config
from lenstrain.evaluation import metrics
from lenstrain.evaluation.pairs import wins
from lenstrain.training.counterfactuals import Counterfactuals
from lenstrain.training.distributed import Context
from lenstrain.training.origins import Origins
from lenstrain.training.step import AMP_DTYPES
from lenstrain.training.transfer import send, widen

Precision = Literal["float32", "tf32", "bf16", "fp16"]
"""What a network computes in; its weights, and its last layer, are float32 in any case."""

AMPERE: Final = (8, 0)
"""Compute capability of the first GPUs (A100) with TF32 and bf16."""


def score_split(
    model: nn.Module,
    batches: Iterable[Any],
    rows: int,
    context: Context,
    *,
    channels_last: bool = True,
    precision: Precision = "float32",
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Logits (float32, however computed) and labels of a split, in its order, on every process.

    Parameters
    ----------
    model : nn.Module
        On ``context.device``, in evaluation mode.
    batches : iterable
        This process's batches of a loader with ``shuffle=None``.
    rows : int
        Rows of the split.
    context : Context
    channels_last : bool
    precision : {"float32", "tf32", "bf16", "fp16"}
        What the model computes in; see `at_precision`.

    Returns
    -------
    logits : ndarray of float32, shape (rows,)
    labels : ndarray of int8, shape (rows,)

    Raises
    ------
    DatasetError
        If a row came twice or not at all.
    """
    # One slot more than rows, which takes the fillers.
    logit = torch.zeros(rows + 1, dtype=torch.float32, device=context.device)
    label = torch.zeros(rows + 1, dtype=torch.float32, device=context.device)
    seen = torch.zeros(rows + 1, dtype=torch.float32, device=context.device)
    with torch.inference_mode(), at_precision(precision, context.device):
        for batch in batches:
            x_BCHW = widen(send(batch.pixels, context.device), channels_last=channels_last)
            weight_B = send(batch.weight, context.device)
            slot_B = torch.where(weight_B > 0, send(batch.index, context.device), rows)
            logit.index_add_(0, slot_B, model(x_BCHW).float())
            label.index_add_(0, slot_B, send(batch.labels, context.device).float())
            seen.index_add_(0, slot_B, torch.ones_like(weight_B))
    # A row was scored by one process and is 0 in all others: the sum is that process's value.
    logit, label, seen = (context.sum(value)[:rows].cpu() for value in (logit, label, seen))
    wrong = torch.nonzero(seen != 1)
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(
            f"{len(wrong)} rows of the split were not scored exactly once; the first is row {row}, "
            f"{int(seen[row])} times. The loader must read with shuffle=None."
        )
    return logit.numpy(), label.to(torch.int8).numpy()


def validation_metrics(
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    fpr: float,
    counterfactuals: Counterfactuals | None = None,
    origins: Origins | None = None,
) -> dict[str, float]:
    """Metrics that training records, and is steered by; those by rank count ties half.

    Parameters
    ----------
    logits : ndarray of float32, shape (rows,)
    labels : ndarray of int8, shape (rows,)
    fpr : float
        False-positive rate at which some are taken.
    counterfactuals : Counterfactuals, optional
        Those among the rows: they have metrics of their own, and no part in any other.
    origins : Origins, optional
        Those of the rows, if there are several: all but the metrics of counterfactuals are of the
        headline's rows.

    Returns
    -------
    dict
        By name, as `lenstrain.evaluation.metrics.recorded` has them; all NaN if a logit is not
        finite.
    """
    recorded = metrics.recorded(counterfactuals=counterfactuals is not None)
    if not np.isfinite(logits).all():
        return dict.fromkeys((metric.name for metric in recorded), float("nan"))
    sample = _ordinary(logits, labels, fpr, headline_rows(counterfactuals, origins))
    if counterfactuals is not None:
        made, pairs = counterfactuals.mask, counterfactuals.pairs
        sample = replace(
            sample,
            wins=wins(logits[pairs.lens], logits[pairs.light]),
            lookalikes=logits[made & (labels == 0)],
        )
    return {metric.name: float(metric.value(sample)) for metric in recorded}


def headline_rows(
    counterfactuals: Counterfactuals | None, origins: Origins | None
) -> NDArray[np.bool_] | None:
    """Which rows of a split its metrics are of, shape (rows,); None if of all."""
    if origins is not None and origins.headline is not None:
        return origins.parts[origins.headline]
    return None if counterfactuals is None else ~counterfactuals.mask


def _ordinary(
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    fpr: float,
    rows: NDArray[np.bool_] | None,
) -> metrics.Sample:
    if rows is not None:
        labels, logits = labels[rows], logits[rows]
    return metrics.Sample(labels, logits, fpr=fpr)


def metrics_by_origin(
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    fpr: float,
    counterfactuals: Counterfactuals | None,
    origins: Origins,
) -> dict[str, dict[str, float]]:
    """Metrics of every origin by itself, as for `validation_metrics`.

    Returns
    -------
    dict
        By origin ``n``, ``n_positive``, the metrics of `validation_metrics`, NaN where there is one
        class, and the shares of lenses and non-lenses, ``tpr`` and ``fpr``, above the threshold of
        the headline's ``tpr_at_fpr``, NaN for a class without rows.
    """
    finite = bool(np.isfinite(logits).all())
    cut = float("nan")
    if finite:
        sample = _ordinary(logits, labels, fpr, headline_rows(counterfactuals, origins))
        cut = metrics.tpr_at_fpr(sample.curve, fpr).threshold
    recorded = metrics.recorded(counterfactuals=False)
    found = {}
    for name, rows in origins.parts.items():
        sample = _ordinary(logits, labels, fpr, rows)
        lens = sample.labels == 1
        n, positives = lens.size, int(np.count_nonzero(lens))
        whole = finite and 0 < positives < n
        entry = {"n": n, "n_positive": positives}
        entry |= {m.name: float(m.value(sample)) if whole else float("nan") for m in recorded}
        for key, among in (("tpr", lens), ("fpr", ~lens)):
            known = finite and among.any()
            entry[key] = float(np.mean(sample.logits[among] > cut)) if known else float("nan")
        found[name] = entry
    return found


def validation_precision(
    config: Config, amp_dtype: torch.dtype | None, device: torch.device
) -> Precision:
    """What ``eval.amp`` means for a run whose network trains in `amp_dtype` (None: float32)."""
    if config.eval.amp != "auto":
        return "bf16" if config.eval.amp == "bf16" else "float32"
    names: dict[torch.dtype | None, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    tf32 = config.train.tf32 and device.type == "cuda"
    return names.get(amp_dtype, "tf32" if tf32 else "float32")


def require_precision(
    precision: Precision, device: torch.device, advice: str = "Score in float32."
) -> None:
    """Refuse, with ConfigError and advice, a precision that a device does not have in hardware.

    A CPU computes in bf16 too, if more slowly than in float32, so that results can be compared.
    """
    if precision == "float32" or (device.type == "cpu" and precision == "bf16"):
        return
    name = "a CPU"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= AMPERE:
            return
        name = f"another ({torch.cuda.get_device_name(device)})"
    raise ConfigError(
        f"Precision {precision} needs a GPU such as an A100 or a later one, and this is {name}. "
        f"{advice}"
    )


@contextmanager
def at_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let networks compute in a precision inside the block.

    ``tf32`` is float32 whose convolutions and products may use TF32. ``bf16`` and ``fp16`` are
    autocast, and what that leaves in float32 (the last layer) does not use TF32.
    """
    dtype = AMP_DTYPES.get(precision)
    with (
        _tf32(allowed=precision == "tf32"),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        yield


def full_float32() -> AbstractContextManager[None]:
    """Switch TF32 off inside the block: float32 on every device."""
    return _tf32(allowed=False)


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was
