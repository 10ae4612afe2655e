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
from functools import partial
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lensprep.configfile import converted
from lensprep.store import Uri
from lensprep.tables.writer import check_table
from lenstrain.data.cache.folder import CacheOptions
from lenstrain.networks.ensemble import Ensemble
from lenstrain.networks.weights import trained_geometry
from lenstrain.scoring.background import Background
from lenstrain.scoring.finishing import Finisher
from lenstrain.scoring.ledger import announce_opening, note_opening
from lenstrain.scoring.origins import Origin, open_origin
from lenstrain.scoring.parts import FinishedParts
from lenstrain.training.checkpoint import load_finder
from lenstrain.training.distributed import Context, process_group
from lenstrain.training.memory import enough_memory
from lenstrain.training.transfer import receive, send, widen
from lenstrain.training.validate import Precision, at_precision, require_precision

logger = logging.getLogger("lenstrain.infer")

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
    survey: Uri = "decals",
    batch_size: int = 256,
    device: str = "auto",
    precision: Literal["float32", "tf32", "bf16"] = "float32",
    tta: bool = False,
    embeddings: bool = False,
    workers: int | None = None,
    cache_dir: Uri | None = None,
    cache_limit_gb: float = 900.0,
    memory_budget_gb: float = 1.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score every row of a split exactly once and write the scores table.

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
        The table to write, parquet, CSV, FITS or VOTable by its suffix; it appears whole or not at
        all. Finished parts are in the folder ``.NAME.parts`` next to it, also in an object store:
        another machine can continue from them.
    catalog : str or path, optional
        CSV or parquet with ``ra``, ``dec`` (and ``key`` or ``file``) of each cutout.
    catalog_columns : mapping, optional
        What it calls ``ra`` and ``dec``, where the heading is not known.
    survey : str or path
        What the stamps and columns of a tree are: ``decals``, or a TOML file as for `lensprep
        convert`. Datasets state it themselves, and cutouts are taken as the checkpoint's.
    batch_size : int
        Stamps at a time, in each process.
    device : {"auto", "cpu", "cuda"}
    precision : {"float32", "tf32", "bf16"}
        What the network computes in (see `lenstrain.training.validate`); logits are float32 in any
        case. The table names it, since scores of two precisions differ by rounding.
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
        ``dataset_id``, ``precision``, ``tta``, ``device``, ``seconds``, ``stamps_per_s``; and
        ``test_openings``, for each checkpoint if the split is test: ``ledger`` (path or None),
        ``before`` (other openings, by other weights or options; None if not known), ``repeated``
        (whether this one is already in it) and ``fault`` (why it could not be read or written, or
        None).

    Raises
    ------
    ConfigError
        If the device does not have that precision.
    CheckpointError
        If a checkpoint is unusable, was trained on other stamps (survey, bands, side, scale), with
        another normalisation or other labels, or gives logits that are not finite.
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
    precision = converted(Literal["float32", "tf32", "bf16"], precision, "precision")
    embeddings = converted(bool, embeddings, "embeddings")
    paths = [checkpoint] if isinstance(checkpoint, str | PathLike) else list(checkpoint)
    check_table(out, vectors=embeddings)
    with (
        process_group(device, _WAIT_MINUTES) as context,
        enough_memory(f"Scoring {batch_size} stamps at a time", context.device, _SMALLER),
        ExitStack() as copies,
    ):
        require_precision(precision, context.device)
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
            trained_geometry(loaded[0][1], str(paths[0])),
            survey,
        )
        for path, (_, meta, _) in zip(paths, loaded, strict=True):
            origin.check(meta, str(path))
        model = Ensemble([m for m, _, _ in loaded], tta=tta, embeddings=embeddings)
        facts = _facts(paths, loaded, origin, precision, tta)
        members = [member["checkpoint_sha256"] for member in facts["members"]]
        openings = [facts | member | {"members": members} for member in facts["members"]]
        opened = list(map(announce_opening, paths, openings)) if context.is_main else []
        finished = FinishedParts(out)
        done, todo = _share_work(finished, facts, origin, batch_size, embeddings, context)
        resumed = sum(origin.parts[index] for index in done)
        tell = _progress(progress, sum(origin.parts), resumed, context)
        account: dict[str, Any] = {}
        try:
            finisher = Finisher(finished, origin, model, paths)
            _score_parts(finisher, todo, context, precision, tell)
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
        "precision": precision,
        "tta": tta,
        "device": str(context.device),
        "seconds": seconds,
        "stamps_per_s": (sum(origin.parts) - resumed) / seconds,
    }


def _facts(
    paths: Sequence[Uri],
    loaded: Sequence[tuple[torch.nn.Module, dict[str, Any], str]],
    origin: Origin,
    precision: Precision,
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
        "geometry": first["geometry"],
        "label_map": dict(first["label_map"]),
        "split": origin.split,
        "precision": precision,
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
        "precision": facts["precision"],
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
    finisher: Finisher,
    todo: Sequence[int],
    context: Context,
    precision: Precision,
    tell: Callable[[int], None],
) -> None:
    """Score parts; this thread does nothing but feed the device."""
    if not todo:
        return
    pinned = context.device.type == "cuda"
    with (
        torch.inference_mode(),
        at_precision(precision, context.device),
        Background() as background,
    ):

        def scored(rows: int) -> None:
            background.check()
            tell(rows)

        for part in finisher.origin.read(todo, pin_memory=pinned):
            columns = background.read(part.table)
            outputs = _score(finisher.model, part.batches, context, scored)
            background.write(partial(finisher.finish, part, outputs, columns))
            if part.rejects is not None:
                tell(part.rejects.num_rows)


def _score(
    model: Ensemble, batches: Iterable[Tensor], context: Context, tell: Callable[[int], None]
) -> Callable[[], Sequence[Tensor]]:
    """What gives the logits (rows, members) and each embedding (rows, features) of a part."""
    logits: list[Tensor] = []
    features: list[list[Tensor]] = []
    for pixels in batches:
        logit_BM, seen = model(widen(send(pixels, context.device), channels_last=True))
        logits.append(logit_BM)
        features.append(seen)
        tell(len(pixels))
    if not logits:  # of a tree or cutouts, where no row of the part has a stamp
        logits.append(torch.empty(0, len(model.members)))
    members = map(list, zip(*features, strict=True))
    return receive([torch.cat(values) for values in (logits, *members)])
