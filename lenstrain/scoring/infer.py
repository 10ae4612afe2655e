"""Score stamps with one checkpoint or several: one row a stamp, one float32 logit a row.

The rows are cut into parts that depend on the source and the batch size alone. Every process
scores some of the parts and writes each to a file next to the table; the first process joins them.
A part that already exists is not scored again, so an interrupted run continues where it stopped,
on any number of processes, and the table has the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensprep.configfile import converted
from lensprep.errors import (
    CheckpointError,
    DatasetError,
    ShardError,
)
from lensprep.store import Uri
from lensprep.tables.writer import check_table
from lenstrain.data.cache.folder import CacheOptions
from lenstrain.networks.ensemble import Ensemble
from lenstrain.scoring.ledger import (
    announce_opening,
    note_opening,
)
from lenstrain.scoring.origins import Origin, Part, open_origin
from lenstrain.scoring.parts import FinishedParts
from lenstrain.training.checkpoint import load_finder
from lenstrain.training.distributed import Context, process_group
from lenstrain.training.memory import enough_memory
from lenstrain.training.transfer import send, widen
from lenstrain.training.validate import full_float32

logger = logging.getLogger("lenstrain.infer")

FIRST_COLUMNS = ("key", "task_id", "label", "logit", "region_id", "split")
"""Columns that every scores table begins with; the source's others follow."""

_SMALLER = "Choose a smaller --batch-size."

_WAIT_MINUTES = 24 * 60.0
"""A finished process waits for the slowest; torchrun ends all of them if one is lost."""

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def infer(
    checkpoint: Uri | Sequence[Uri],
    dataset: Uri,
    *,
    split: str = "val",
    out: Uri,
    catalog: Uri | None = None,
    catalog_columns: Mapping[str, str] | None = None,
    batch_size: int = 256,
    device: str = "auto",
    tta: bool = False,
    embeddings: bool = False,
    workers: int | None = None,
    cache_dir: Uri | None = None,
    cache_limit_gb: float = 900.0,
    memory_budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score every row of a split exactly once, in float32, and write the scores table.

    Under torchrun each process scores its parts and the first one writes; the table is the same.
    Repeating an interrupted call continues where it stopped.

    Parameters
    ----------
    checkpoint : str or path, or sequence of them
        From `lenstrain train`; averaged weights are used if a run kept an average. With several
        the logit is the mean of the members', which are in ``logit_0``, ``logit_1``, ... This and
        all other locations may be local or s3://.
    dataset : str or path
        A converted dataset, whose normalisation must be the checkpoint's; a Phase 4c tree, whose
        stamps are normalised as the checkpoint asks; or a folder of cutouts, with `catalog`.
    split : str
        ``"train"``, ``"val"`` or ``"test"``; cutouts have none. Opening test is logged, and noted
        in the ledger of each checkpoint's run, which `lenstrain audit` reads.
    out : str or path
        The table to write, parquet, CSV or FITS by its suffix; it appears whole or not at all.
        Finished parts are in the folder ``.NAME.parts`` next to it, also in an object store:
        another machine can continue from them.
    catalog : str or path, optional
        CSV or parquet with ``ra``, ``dec`` (and ``key`` or ``file``) of each cutout.
    catalog_columns : mapping, optional
        What it calls ``ra`` and ``dec``, where the heading is not known.
    batch_size : int
        Stamps at a time, in each process.
    device : {"auto", "cpu", "cuda"}
    tta : bool
        Average the logit over the 8 rotations and flips of each stamp.
    embeddings : bool
        Add the columns ``embedding`` (or ``embedding_0``, ...): the features that a head sees.
    workers : int, optional
        Decoding processes of each process, where stamps must be decoded.
    cache_dir : path, optional
        Folder on a fast disk for shards of an object store (see `StampLoader`).
    cache_limit_gb : float
        Most that it may hold.
    memory_budget_gb : float
        Memory that reading ahead may take in each process.
    progress : callable, optional
        Called with rows done and rows in all (by the first process; the others' are estimated).

    Returns
    -------
    dict
        ``rows``, ``filtered`` and ``rejected`` (by reason; none of a dataset), ``resumed_rows``,
        ``split``, ``out``, ``rejects`` (path or None), ``checkpoint_sha256``, ``members``,
        ``dataset_id``, ``tta``, ``device``, ``seconds``, ``stamps_per_s``; and ``test_openings``,
        for each checkpoint if the split is test: ``ledger`` (path or None), ``before`` (other
        openings, by other weights or options; None if not known), ``repeated`` (whether this one
        is already in it) and ``fault`` (why it could not be read or written, or None).

    Raises
    ------
    CheckpointError
        If a checkpoint is unusable, was trained with another normalisation or other labels, or
        gives logits that are not finite.
    DatasetError, ShardError
        If the dataset or a shard is not what it should be.
    InputError
        If a tree or the cutouts cannot be read, or none of them can be scored.
    OutOfMemoryError
        If `batch_size` stamps do not fit.
    StorageError
        If `out` cannot be written or its suffix names no format; raised before any work.
    """
    start = time.perf_counter()
    split, tta = converted(str, split, "split"), converted(bool, tta, "tta")
    batch_size = converted(int, batch_size, "batch_size")
    embeddings = converted(bool, embeddings, "embeddings")
    paths = [checkpoint] if isinstance(checkpoint, str | PathLike) else list(checkpoint)
    check_table(out, vectors=embeddings)
    with (
        process_group(device, _WAIT_MINUTES) as context,
        enough_memory(f"Scoring {batch_size} stamps at a time", context.device, _SMALLER),
        ExitStack() as copies,
    ):
        loaded = [load_finder(path, context.device) for path in paths]
        loading = {
            "cache_dir": cache_dir,
            "cache": CacheOptions(limit_bytes=int(cache_limit_gb * 1e9)),
            "memory_budget": int(memory_budget_gb * 1e9),
        }
        origin = open_origin(
            dataset,
            split,
            None if catalog is None else (catalog, dict(catalog_columns or {})),
            batch_size,
            loaded[0][1]["normalization"],
            workers,
            loading,
            copies,
        )
        for path, (_, meta, _) in zip(paths, loaded, strict=True):
            origin.check(meta, str(path))
        model = Ensemble([m for m, _, _ in loaded], tta=tta, embeddings=embeddings)
        facts = _facts(paths, loaded, origin, tta)
        members = [member["checkpoint_sha256"] for member in facts["members"]]
        openings = [facts | member | {"members": members} for member in facts["members"]]
        opened = list(map(announce_opening, paths, openings)) if context.is_main else []
        finished = FinishedParts(out)
        done, todo = _share_work(finished, facts, origin, batch_size, embeddings, context)
        resumed = sum(origin.parts[index] for index in done)
        tell = _progress(progress, sum(origin.parts), resumed, context)
        account: dict[str, Any] = {}
        try:
            _score_parts(model, origin, todo, finished, context, tell, paths)
            context.barrier()
            if context.is_main:
                remedy = (
                    "Is --out a folder that all processes see?"
                    if context.world_size > 1
                    else "It was removed meanwhile: does another `lenstrain infer` write the same "
                    "--out?"
                )
                account = finished.join(len(origin.parts), facts, remedy)
        except BaseException:
            finished.leave()
            raise
        if context.is_main:
            finished.remove()
            for found, opening in zip(opened, openings, strict=True):
                note_opening(found, opening)
            account["test_openings"] = opened if origin.split == "test" else []
        account = context.from_main(account)
        context.barrier()
    seconds = time.perf_counter() - start
    return account | {
        "resumed_rows": resumed,
        "split": origin.split,
        "out": str(out),
        "checkpoint_sha256": facts["checkpoint_sha256"],
        "members": members,
        "dataset_id": facts["dataset_id"],
        "tta": tta,
        "device": str(context.device),
        "seconds": seconds,
        "stamps_per_s": (sum(origin.parts) - resumed) / seconds,
    }


def _facts(
    paths: Sequence[Uri],
    loaded: Sequence[tuple[torch.nn.Module, dict[str, Any], str]],
    origin: Origin,
    tta: bool,
) -> dict[str, Any]:
    """Metadata of the table of scores, in plain types."""
    members = [
        {
            "checkpoint": str(path),
            "checkpoint_sha256": digest,
            "step": meta["step"],
            "epoch": meta["epoch"],
            "trained_on": meta["dataset_id"],
            "config": meta["config"],
            "versions": meta["versions"],
            "git_commit": meta.get("git_commit"),
        }
        for path, (_, meta, digest) in zip(paths, loaded, strict=True)
    ]
    first = loaded[0][1]
    digests = [member["checkpoint_sha256"] for member in members]
    joined = hashlib.sha256("".join(digests).encode()).hexdigest()
    return {
        **members[0],
        "checkpoint_sha256": digests[0] if len(digests) == 1 else joined,
        "members": members,
        **origin.facts,
        "normalization": first["normalization"],
        "label_map": dict(first["label_map"]),
        "split": origin.split,
        "tta": tta,
    }


def _share_work(
    finished: FinishedParts,
    facts: dict[str, Any],
    origin: Origin,
    batch_size: int,
    embeddings: bool,
    context: Context,
) -> tuple[list[int], list[int]]:
    """Parts that are done already, and those that this process is to score.

    The first process looks and tells the others, which might see parts that were finished since.
    """
    plan = {
        "members": [member["checkpoint_sha256"] for member in facts["members"]],
        "origin": {name: facts[name] for name in ("dataset_id", "source", "split")},
        "parts": list(origin.parts),
        "batch_size": batch_size,
        "tta": facts["tta"],
        "embeddings": embeddings,
    }
    done = context.from_main(finished.begin(plan, len(origin.parts)) if context.is_main else [])
    remaining = sorted(set(range(len(origin.parts))) - set(done))
    mine = np.array_split(np.array(remaining, dtype=int), context.world_size)[context.rank]
    return done, mine.tolist()


def _progress(
    progress: Progress | None, rows: int, done: int, context: Context
) -> Callable[[int], None]:
    """Report on all processes, counting as many rows of each of the others as of this one."""

    def tell(more: int) -> None:
        nonlocal done
        done = min(rows, done + more * context.world_size)
        if progress is not None and context.is_main:
            progress(done, rows)

    return tell


def _score_parts(
    model: Ensemble,
    origin: Origin,
    todo: Sequence[int],
    finished: FinishedParts,
    context: Context,
    tell: Callable[[int], None],
    checkpoints: Sequence[Uri],
) -> None:
    if not todo:
        return
    with torch.inference_mode(), full_float32():
        for part in origin.read(todo, pin_memory=context.device.type == "cuda"):
            logit_RM, features = _score(model, part.batches, context, tell)
            _require_finite(logit_RM, model, origin, part, checkpoints)
            table = _scored(part.table(), origin.split, logit_RM, features)
            finished.write(part.index, table, part.rejects)
            if part.rejects is not None:
                tell(part.rejects.num_rows)
            elif table.num_rows != origin.parts[part.index]:  # of a tree some are of other splits
                raise DatasetError(
                    f"{table.num_rows} rows were scored where the manifest states "
                    f"{origin.parts[part.index]}."
                )


def _score(
    model: Ensemble, batches: Iterable[Tensor], context: Context, tell: Callable[[int], None]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Logits (rows, members) and embeddings (rows, features) of a part."""
    logits: list[Tensor] = []
    features: list[list[Tensor]] = []
    for pixels in batches:
        logit_BM, seen = model(widen(send(pixels, context.device), channels_last=True))
        # Copied from the device once the part is done: each copy waits for the device.
        logits.append(logit_BM)
        features.append(seen)
        tell(len(pixels))
    if not logits:
        return np.empty((0, len(model.members)), np.float32), []
    joined = [torch.cat(member).cpu().numpy() for member in zip(*features, strict=True)]
    return torch.cat(logits).cpu().numpy(), joined


def _require_finite(
    logit_RM: NDArray[np.float32],
    model: Ensemble,
    origin: Origin,
    part: Part,
    checkpoints: Sequence[Uri],
) -> None:
    """Refuse logits that are not finite, and say whether the pixels or the weights are the cause.

    It is a ShardError if the first such stamp has pixels that are not finite, else a
    CheckpointError.
    """
    broken_RM = ~np.isfinite(logit_RM)
    if not broken_RM.any():
        return
    row, member = np.argwhere(broken_RM)[0].tolist()
    name = f"stamp {part.table()['key'][row]} of {origin.facts['dataset']}"
    if not torch.isfinite(_stamp(origin, part.index, row)).all():
        raise ShardError(
            f"The pixels of {name} are not finite. `lensprep verify` finds damaged shards."
        )
    sound = all(value.isfinite().all() for value in model.members[member].state_dict().values())
    raise CheckpointError(
        f"{checkpoints[member]} gives logits that are not finite for {broken_RM[:, member].sum()} "
        f"of {len(logit_RM)} stamps. The pixels of the first, {name}, are finite, and its weights "
        + ("are too: numbers overflow." if sound else "are not: its training has diverged.")
        + " Use an earlier checkpoint."
    )


def _stamp(origin: Origin, index: int, row: int) -> Tensor:
    """Pixels of one row of a part, read again."""
    parts = origin.read([index])  # held: it ends when nothing refers to it
    for pixels in next(parts).batches:
        if row < len(pixels):
            return pixels[row].clone()
        row -= len(pixels)
    raise DatasetError(f"{origin.facts['dataset']} has become smaller while it was read.")


def _scored(
    light: pa.Table,
    split: str | None,
    logit_RM: NDArray[np.float32],
    features: Sequence[NDArray[np.float32]],
) -> pa.Table:
    """Columns of the source with the logits, in the order of columns that readers rely on."""
    rows, members = logit_RM.shape
    if light.num_rows != rows:
        raise DatasetError(f"{rows} stamps came with {light.num_rows} rows of columns.")
    columns: dict[str, Any] = {name: light[name] for name in light.column_names}
    columns["logit"] = pa.array(logit_RM.mean(axis=1, dtype=np.float64), pa.float32())
    columns["split"] = pa.array([split] * rows, pa.string())
    if members > 1:
        columns |= {f"logit_{m}": pa.array(logit_RM[:, m], pa.float32()) for m in range(members)}
    for m, vector in enumerate(features):
        name = "embedding" if members == 1 else f"embedding_{m}"
        flat = pa.array(vector.ravel(), pa.float32())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, vector.shape[1])
    rest = [name for name in columns if name not in FIRST_COLUMNS]
    return pa.table({name: columns[name] for name in (*FIRST_COLUMNS, *rest)})
