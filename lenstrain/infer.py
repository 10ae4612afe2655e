"""Score a split with a checkpoint: one row a stamp, one float32 logit a row."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lensprep.dataset import Dataset, NormalizationSpec
from lensprep.dataset.storage import atomic_writer, local_path
from lensprep.errors import CheckpointError, ConfigError, ShardError
from lenstrain.augment import D4_ORDER, transform
from lenstrain.data import StampLoader
from lenstrain.training.checkpoint import load_model
from lenstrain.training.distributed import Context, process_group
from lenstrain.training.validate import score_split

FIRST_COLUMNS = ("key", "task_id", "label", "logit", "region_id", "split")
"""Columns that every scores table begins with; the sidecar's others follow."""

METADATA_KEY = b"lenstrain"
_SUM_TIMEOUT_MINUTES = 30.0

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def infer(
    checkpoint: str | Path,
    dataset: str | Path,
    *,
    split: str,
    out: str | Path,
    batch_size: int = 256,
    device: str = "auto",
    tta: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score every row of a split exactly once, in float32, and write the scores table.

    Under torchrun each process scores its part and the first one writes; the table is the same.

    Parameters
    ----------
    checkpoint : path
        From `lenstrain train`; averaged weights are used if the run kept an average.
    dataset : str or path
        Its normalisation must be the one that the checkpoint was trained with.
    split : str
        ``"train"``, ``"val"`` or ``"test"``.
    out : path
        The parquet file to write; it appears whole or not at all.
    batch_size : int
        Stamps at a time, in each process.
    device : {"auto", "cpu", "cuda"}
    tta : bool
        Average the logit over the 8 turns and flips of each stamp.
    progress : callable, optional
        Called with rows done and rows in all (by the first process).

    Returns
    -------
    dict
        ``rows``, ``split``, ``out``, ``checkpoint_sha256``, ``dataset_id``, ``tta``, ``device``,
        ``seconds``, ``stamps_per_s``.

    Raises
    ------
    CheckpointError
        If the checkpoint is unusable, was trained with another normalisation or other labels, or
        gives logits that are not finite.
    DatasetError, ShardError
        If the dataset or a shard is not what it should be.
    """
    start = time.perf_counter()
    with process_group(device, _SUM_TIMEOUT_MINUTES) as context:
        model, meta = load_model(local_path(checkpoint), context.device)
        data = Dataset.open(dataset)
        _check_fits(meta, data, checkpoint)
        scorer = D4Mean(model) if tta else model
        logits, labels = _score(scorer, data, split, batch_size, context, progress)
        broken = int(np.count_nonzero(~np.isfinite(logits)))
        if broken:
            raise CheckpointError(
                f"{checkpoint} gives logits that are not finite for {broken} of {len(logits)} "
                "stamps: its training has diverged. Use an earlier checkpoint."
            )
        facts = _facts(checkpoint, meta, data, split, tta)
        if context.is_main:
            _write(local_path(out), data, split, logits, labels, facts)
        context.barrier()
    seconds = time.perf_counter() - start
    return {
        "rows": len(logits),
        "split": split,
        "out": str(out),
        "checkpoint_sha256": facts["checkpoint_sha256"],
        "dataset_id": data.dataset_id,
        "tta": tta,
        "device": str(context.device),
        "seconds": seconds,
        "stamps_per_s": len(logits) / seconds,
    }


class D4Mean(nn.Module):
    """A model whose logit is the mean over the 8 turns and flips of each stamp.

    Parameters
    ----------
    model : nn.Module
        Maps (B, 3, S, S) to (B,).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mean logits, float32, shape (B,)."""
        total_B = x_BCHW.new_zeros(len(x_BCHW), dtype=torch.float32)
        for element in range(D4_ORDER):
            element_B = torch.full((len(x_BCHW),), element, device=x_BCHW.device)
            total_B += self.model(transform(x_BCHW, element_B)).float()
        return total_B / D4_ORDER


def _check_fits(meta: dict[str, Any], data: Dataset, checkpoint: str | Path) -> None:
    """Refuse a dataset whose pixels or labels mean something else than those trained with."""
    trained = NormalizationSpec.from_dict(meta["normalization"])
    stored = data.manifest.normalization
    if trained.to_dict() != stored.to_dict():
        raise CheckpointError(
            f"{checkpoint} was trained on pixels of normalisation {_spell(trained)}, but "
            f"{data.uri} holds {_spell(stored)}. Convert the source again with the checkpoint's, "
            "or use a checkpoint trained with the dataset's."
        )
    if dict(meta["label_map"]) != dict(data.manifest.label_map):
        raise CheckpointError(
            f"{checkpoint} was trained with labels {meta['label_map']}, but {data.uri} has "
            f"{data.manifest.label_map}. Convert the source again with this version."
        )


def _spell(spec: NormalizationSpec) -> str:
    parameters = "".join(f", {name} {value}" for name, value in sorted(spec.parameters.items()))
    return f"{spec.mode} (clip {spec.clip:g}{parameters})"


def _score(
    model: nn.Module,
    data: Dataset,
    split: str,
    batch_size: int,
    context: Context,
    progress: Progress | None,
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    loader = StampLoader(
        data.uri,
        split,
        batch_size,
        shuffle=None,
        rank=context.rank,
        world_size=context.world_size,
        pin_memory=context.device.type == "cuda",
    )
    rows, done = data.split(split).rows, 0

    def on_batch() -> None:
        nonlocal done
        done = min(rows, done + batch_size * context.world_size)
        if progress is not None and context.is_main:
            progress(done, rows)

    try:
        logits, labels = score_split(model, loader, rows, context, on_batch=on_batch)
    finally:
        loader.close()
    if len(logits) != rows:
        raise ConfigError(f"{len(logits)} rows were scored where the manifest states {rows}")
    return logits, labels


def _facts(
    checkpoint: str | Path, meta: dict[str, Any], data: Dataset, split: str, tta: bool
) -> dict[str, Any]:
    """What the scores table says about its origin, in plain types."""
    with local_path(checkpoint).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": digest,
        "step": meta["step"],
        "epoch": meta["epoch"],
        "trained_on": meta["dataset_id"],
        "dataset": data.uri,
        "dataset_id": data.dataset_id,
        "normalization": data.manifest.normalization.to_dict(),
        "label_map": dict(data.manifest.label_map),
        "split": split,
        "tta": tta,
        "versions": meta["versions"],
    }


def _write(
    out: Path,
    data: Dataset,
    split: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    facts: dict[str, Any],
) -> None:
    """Write the table shard by shard, so that memory does not grow with the sidecars."""
    metadata = {METADATA_KEY: json.dumps(facts)}
    schema, start = None, 0
    with atomic_writer(out) as file, ExitStack() as stack:
        for shard in data.split(split).shards:
            part = slice(start, start + shard.rows)
            table = _scored(data.read_shard_sidecar(shard), split, logits[part], shard.sidecar)
            if not np.array_equal(table["label"].to_numpy(), labels[part]):
                raise ShardError(f"{data.path(shard.sidecar)} changed while its shard was scored.")
            if schema is None:
                schema = table.schema
                titled = schema.with_metadata(metadata)
                writer = stack.enter_context(pq.ParquetWriter(file, titled, compression="zstd"))
            if table.schema != schema:
                raise ShardError(
                    f"{data.path(shard.sidecar)} has other columns than the shards before it. Run "
                    "`lensprep verify`, and convert again."
                )
            writer.write_table(table.cast(titled))
            start += shard.rows


def _scored(sidecar: pa.Table, split: str, logits: NDArray[np.float32], name: str) -> pa.Table:
    """Sidecar rows with their logits, in the order of columns that readers rely on."""
    missing = set(FIRST_COLUMNS) - {"logit", "split", *sidecar.column_names}
    if missing:
        raise ShardError(f"{name} has no column {min(missing)!r}. Convert the source again.")
    columns = {name: sidecar[name] for name in sidecar.column_names}
    columns["logit"] = pa.chunked_array([pa.array(logits, pa.float32())])
    columns["split"] = pa.chunked_array([pa.repeat(pa.scalar(split), len(logits))])
    rest = [name for name in columns if name not in FIRST_COLUMNS]
    return pa.table({name: columns[name] for name in (*FIRST_COLUMNS, *rest)})
