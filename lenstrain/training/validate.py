"""Score a whole split in float32, every row once, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lensprep.errors import DatasetError
from lenstrain.evaluation import metrics
from lenstrain.training.distributed import Context
from lenstrain.training.transfer import send, widen


def score_split(
    model: nn.Module,
    batches: Iterable[Any],
    rows: int,
    context: Context,
    *,
    channels_last: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Logits and labels of all rows of a split, in split order, on every process.

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
    with torch.inference_mode(), full_float32():
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
    logits: NDArray[np.float32], labels: NDArray[np.int8], fpr: float
) -> dict[str, float]:
    """Metrics that training records; those by rank count ties half.

    Returns
    -------
    dict
        By name, as `lenstrain.evaluation.metrics.METRICS` has them; all NaN if a logit is not
        finite.
    """
    recorded = [metric for metric in metrics.METRICS if metric.training != "none"]
    if not np.isfinite(logits).all():
        return dict.fromkeys((metric.name for metric in recorded), float("nan"))
    sample = metrics.Sample(labels, logits, fpr=fpr)
    return {metric.name: float(metric.value(sample)) for metric in recorded}


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch TF32 off inside the block: scores are float32 on every device."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
