"""`StampLoader`: exact epochs of stamps, for any number of ranks, resumable at any step."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
import webdataset as wds
from numpy.typing import ArrayLike, NDArray

from lensprep.configfile import converted
from lensprep.dataset import PAYLOAD_BYTES, Dataset
from lensprep.errors import BudgetError, CheckpointError, ConfigError
from lensprep.store import S3Options, is_remote
from lenstrain.data.batch import Batch, PixelPool
from lenstrain.data.cache.filling import CachedSplit, beside_bytes, open_copies
from lenstrain.data.cache.folder import CacheOptions
from lenstrain.data.order import EpochOrder, OrderSpec, Shuffle, block_bounds, order_key
from lenstrain.data.selection import Sampling, select
from lenstrain.data.sidecar import PayloadCheck
from lenstrain.data.sources.remote import MEMORY_BUDGET, Reading, RemoteSource
from lenstrain.data.split import SplitData, open_split
from lenstrain.data.stream import OneProcess, PlanSteps, announce, gather_pixels, read_ahead

logger = logging.getLogger("lenstrain.data")

Verify = Literal["size", "crc"]

STATE_VERSION = 1
_MOST_AHEAD = 8
"""Batches read ahead from a local disk: enough to ride out a pause, few enough to stay in cache."""

_STATE_KEYS = ("dataset_id", "split", "selection", "seed", "shuffle", "global_batch", "drop_last")


class StampLoader(OneProcess, wds.PipelineStage):
    """Batches of stamps from a converted dataset.

    Every row comes exactly once an epoch over all ranks, every rank takes the same number of
    steps, and the order depends on (seed, epoch, dataset, global batch size) alone. The last batch
    is filled with rows of weight 0, or left out.

    Iterating gives one epoch and then moves on to the next by itself; `set_epoch` says which one
    comes. An iteration that is broken off starts its epoch again, unless a state is loaded.

    It belongs to the process that made it: in a worker process of a `torch.utils.data.DataLoader`
    every worker would give every row again, so it is refused there, and after a fork.

    Parameters
    ----------
    uri : str or path
        The dataset; or stock WebDataset tars (a ``.tar``, a brace pattern or a wildcard that ends
        in ``.tar``), which are read by the stock stages: more slowly, with a warning.
    split : str
        ``"train"``, ``"val"`` or ``"test"``.
    batch_size : int
        Rows of a batch of this rank: the global batch size divided by `world_size`.
    seed : int
        Seed of the order.
    shuffle : {"global", "block", None}
        Permute all rows, mix rows of neighbouring blocks (`mixing_window` says how far), or keep
        the stored order.
    rank, world_size : int
        This process among those that share the epoch.
    cache_dir : path, optional
        Folder on a fast disk for copies of the shards of an object store, shared by the processes
        of a node (`lenstrain.data.cache.folder`); a local dataset is read where it is. With a
        global shuffle the shards are fetched before the first batch; otherwise beside the first
        epoch.
    drop_last : bool
        Leave out the last, incomplete global batch instead of filling it.
    pin_memory : bool
        Page-locked batches, for copies to a CUDA device that do not wait.
    memory_budget : int
        Most bytes that read-ahead holds, besides the batches that the consumer holds.
    verify : {"size", "crc"}, optional
        ``"size"`` compares every shard's size at the start of every epoch; ``"crc"`` also the
        CRC-32 of every stamp: of a local dataset or a cache when it is first read, of an object
        store whenever it arrives. By default ``"crc"`` for an object store, else ``"size"``.
    where : str, optional
        Only rows for which this is true, such as ``"theta_e_arcsec / psfsize_r >= 0.5"``.
    limit : int, optional
        Only the first rows (of those that `where` keeps).
    sampling : {"uniform", "balanced"}
        ``"balanced"``: both classes equally often, see `lenstrain.data.selection.select`.
    weights : array_like of float, optional
        Relative rate of every row of the split, for instance `hard_negative_weights`.
    s3 : S3Options, optional
        How to reach an object store; the usual AWS variables and profiles apply in any case.
    cache : CacheOptions, optional
        Limits of the cache.

    Raises
    ------
    DatasetError, ShardError
        If the dataset is not there, or a shard is missing or cut.
    ConfigError
        If an option does not fit or is of another type, or in a worker process of a DataLoader.
    BudgetError
        If a dataset in an object store is to be read in an order that needs more memory: a global
        shuffle needs all of its rows in memory (or in a cache), a block shuffle a mixing window.
    StorageError
        If the object store or the cache's disk does not let us, or does not answer.
    """

    def __init__(
        self,
        uri: str | PathLike[str],
        split: str = "train",
        batch_size: int = 256,
        seed: int = 0,
        shuffle: Shuffle = "global",
        rank: int = 0,
        world_size: int = 1,
        cache_dir: str | PathLike[str] | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        *,
        memory_budget: int = MEMORY_BUDGET,
        verify: Verify | None = None,
        where: str | None = None,
        limit: int | None = None,
        sampling: Sampling = "uniform",
        weights: ArrayLike | None = None,
        s3: S3Options | None = None,
        cache: CacheOptions | None = None,
    ) -> None:
        super().__init__()
        # Plain types from here on: they end up in the state, which is loaded with weights_only.
        split, sampling = converted(str, split, "split"), converted(str, sampling, "sampling")
        batch_size, seed = converted(int, batch_size, "batch_size"), converted(int, seed, "seed")
        rank, world_size = converted(int, rank, "rank"), converted(int, world_size, "world_size")
        drop_last = converted(bool, drop_last, "drop_last")
        shuffle = shuffle if shuffle is None else converted(str, shuffle, "shuffle")
        where = converted(str | None, where, "where")
        limit = converted(int | None, limit, "limit")
        remote = is_remote(uri)
        verify = verify or ("crc" if remote else "size")
        _check_options(batch_size, rank, world_size, pin_memory, verify)
        self.split, self.batch_size, self.rank, self.world_size = (
            split,
            batch_size,
            rank,
            world_size,
        )
        self.depth = _depth(batch_size, memory_budget, 0.25 if remote else 1.0)
        left = memory_budget - (self.depth + 1) * batch_size * PAYLOAD_BYTES
        self.copies: CachedSplit | None = None
        copies_of: Callable[[Dataset], CachedSplit | None] | None = None
        if remote:
            caching = _Caching(cache_dir, cache, split, left, rank == 0)
            left = caching.memory_left
            copies_of = partial(self._keep_copies, caching)
        reading = Reading(memory_budget=left, check=verify == "crc")
        try:
            self.data: SplitData = open_split(uri, split, reading, s3, copies_of)
            self.source = self.data.source
            self._set_up(seed, shuffle, drop_last, pin_memory, verify,
                         where=where, limit=limit, sampling=sampling, weights=weights)  # fmt: skip
        except BaseException:
            if self.copies is not None:
                self.copies.close()
            raise

    def _keep_copies(self, caching: _Caching, dataset: Dataset) -> CachedSplit | None:
        self.copies = caching.open(dataset)
        return self.copies

    def _set_up(
        self,
        seed: int,
        shuffle: Shuffle,
        drop_last: bool,
        pin_memory: bool,
        verify: Verify,
        **selection: Any,
    ) -> None:
        """What follows once the split is open."""
        self.selection = select(self.data, **selection)
        self.spec = self._make_spec(seed, shuffle, drop_last)
        self._verify = verify
        self._check: PayloadCheck | None = None
        self._pool = PixelPool(self.batch_size, keep=self.depth + 2, pin_memory=pin_memory)
        self._epoch, self._next_step, self._done = 0, 0, 0
        self._current: _Epoch | None = None
        if isinstance(self.source, RemoteSource):
            if self.copies is not None:
                self.copies.narrow(self.source.shards_of(self.selection.rows))
            if self.spec.shuffle == "global":
                self._prepare_global(self.source)
            else:
                self._check_window(self.source)
                self._fill_beside()  # from now on: a validation is cached before it begins
        if shuffle == "block" and self.rank == 0:
            logger.info(
                "%s: the block shuffle mixes over %s of %s samples.",
                self.data.title,
                f"{self.mixing_window:,}",
                f"{self.spec.rows:,}",
            )

    def _prepare_global(self, source: RemoteSource) -> None:
        """Have every row in the cache or, if there is none, see that memory holds them all."""
        full = self.copies is not None and self.copies.fill().full
        try:
            source.check_resident(self.selection.rows)
        except BudgetError as error:
            if not full or self.copies is None:
                raise
            raise BudgetError(f"{self.copies.shortage()} {error}") from error

    def _check_window(self, source: RemoteSource) -> None:
        """Refuse a block shuffle whose mixing window is larger than the memory."""
        order, rows = self._order()
        steps = min(len(self), 2 * self.mixing_window // self.spec.global_batch + 2, 1024)
        plans = PlanSteps(order, rows, rank=self.rank, world_size=self.world_size).run()
        source.check_budget(plan.index for plan in islice(plans, steps))

    def _make_spec(self, seed: int, shuffle: Shuffle, drop_last: bool) -> OrderSpec:
        name = "/".join(
            part for part in (self.data.identity, self.split, self.selection.digest) if part
        )
        try:
            spec = OrderSpec(
                rows=self.selection.epoch_rows,
                global_batch=self.batch_size * self.world_size,
                seed=seed,
                dataset_id=name,
                shuffle=shuffle,
                drop_last=drop_last,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not spec.steps:
            raise ConfigError(
                f"split {self.split!r} gives {spec.rows} rows an epoch, less than one global batch "
                f"of {spec.global_batch}, and drop_last leaves that out. Use smaller batches."
            )
        return spec

    def _fill_beside(self) -> None:
        """Have what the cache lacks fetched while batches are streamed."""
        if self.copies is not None and isinstance(self.source, RemoteSource):
            self.copies.fill_beside(self.source.reader.hungry)

    @property
    def labels(self) -> NDArray[np.int8]:
        """Labels of the whole split, in its order."""
        return self.data.all_labels()

    @property
    def epoch(self) -> int:
        """Epoch that the next iteration gives."""
        return self._epoch

    @property
    def mixing_window(self) -> int:
        """Rows that can meet in one batch, in samples."""
        return self.spec.mixing_window

    def __len__(self) -> int:
        """Steps of an epoch, the same on every rank."""
        return self.spec.steps

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration gives.

        A step set by `load_state_dict` is kept if it belongs to this epoch.
        """
        epoch = converted(int, epoch, "epoch")
        if epoch < 0:
            raise ConfigError(f"epoch must not be negative, got {epoch}")
        if epoch != self._epoch:
            self._epoch, self._next_step, self._done = epoch, 0, 0

    def pipeline(self, start: int = 0) -> wds.DataPipeline:
        """The stages of the present epoch, to compose with others: ``.compose(wds.map(f))``.

        Parameters
        ----------
        start : int
            First step.
        """
        order, rows = self._order()
        remote = isinstance(self.source, RemoteSource)  # which compares on arrival
        if self._verify == "crc" and not remote and self._check is None:
            self._check = PayloadCheck(
                self.data.checksums(), sum(self.data.shard_rows), self.source
            )
        return wds.DataPipeline(
            PlanSteps(order, rows, start=start, rank=self.rank, world_size=self.world_size),
            announce(self.source, self._lookahead()),
            gather_pixels(self.source, self.data.labels, self._pool, self._check),
            read_ahead(self.depth),
        )

    def _lookahead(self) -> int:
        """Steps that the source is told of before they are read."""
        if isinstance(self.source, RemoteSource):
            return self.source.lookahead(self.batch_size)
        return self.depth

    def _order(self) -> tuple[EpochOrder, NDArray[np.int64] | None]:
        """Order of the present epoch, and the rows it orders."""
        rows = self.selection.epoch(order_key(self.spec, self._epoch))
        blocks = None
        if self.spec.shuffle == "block":
            bounds = np.cumsum([0, *self.data.shard_rows])
            in_epoch = bounds if rows is None else np.searchsorted(rows, bounds)
            blocks = block_bounds(np.diff(in_epoch))
        return EpochOrder(self.spec, self._epoch, blocks), rows

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of the present epoch, from the step of a loaded state on."""
        self.require_own_process()
        if self._current is not None:
            self._current.close()
        self.source.check()
        self._fill_beside()
        start, self._next_step = self._next_step, 0
        self._done = start
        self._current = _Epoch(self, self.pipeline(start).iterator1())
        return self._current

    def run(self, *_: Any) -> Iterator[Batch]:
        """Be the first stage of a `webdataset.DataPipeline`."""
        return iter(self)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: plain numbers, independent of the ranks.

        Counted are the batches handed out, not those read ahead.
        """
        state = self._identity()
        state.update(version=STATE_VERSION, epoch=self._epoch, step=self._done)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, on any number of ranks of the same global batch.

        Raises
        ------
        CheckpointError
            If the state belongs to another dataset, selection, seed, order or global batch size.
        """
        if state.get("version") != STATE_VERSION:
            raise CheckpointError(
                f"the loader's state has version {state.get('version')}; this version reads "
                f"{STATE_VERSION}. Start a new run."
            )
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise CheckpointError(
                    f"the loader's state was taken with {name} = {state.get(name)!r}, but this "
                    f"loader has {mine!r}: the order would be another one. Use the same, or start "
                    "a new run."
                )
        try:
            epoch, step = (converted(int, state.get(name), name) for name in ("epoch", "step"))
        except ConfigError as error:
            raise CheckpointError(f"the loader's state is damaged: {error}") from None
        if epoch < 0 or not 0 <= step <= len(self):
            raise CheckpointError(
                f"the loader's state has no such place: epoch {epoch}, step {step}"
            )
        if step == len(self):
            epoch, step = epoch + 1, 0
        if self._current is not None:
            self._current.close()
        self._epoch, self._next_step, self._done = epoch, step, step

    def _identity(self) -> dict[str, Any]:
        values = (
            self.data.identity,
            self.split,
            self.selection.digest,
            self.spec.seed,
            self.spec.shuffle,
            self.spec.global_batch,
            self.spec.drop_last,
        )
        return dict(zip(_STATE_KEYS, values, strict=True))

    def forget_checks(self) -> None:
        """With ``verify="crc"``: check every stamp again when it is next read."""
        if self._check is not None:
            self._check.forget()

    def close(self) -> None:
        """End reading and unmap the shards; batches handed out stay valid."""
        self.require_own_process()
        if self._current is not None:
            self._current.close()
        self.source.close()
        if self.copies is not None:
            self.copies.close()

    def _advance(self, epoch: _Epoch, *, finished: bool) -> None:
        """Note that a batch was handed out, or that the epoch is over (called by its iterator)."""
        if epoch is not self._current:
            return
        if finished:
            self._epoch, self._done, self._current = self._epoch + 1, 0, None
        else:
            self._done += 1


class _Epoch(OneProcess, Iterator[Batch]):
    """Iterator over one epoch; several threads may take batches from it."""

    def __init__(self, loader: StampLoader, batches: Iterator[Batch]) -> None:
        # Weak, so that no cycle keeps an abandoned iterator and its thread until a collection.
        self._loader, self._batches = weakref.ref(loader), batches
        super().__init__()
        self._lock = threading.Lock()

    def __next__(self) -> Batch:
        self.require_own_process()
        with self._lock:
            try:
                batch = next(self._batches)
            except StopIteration:
                self._tell(finished=True)
                raise
            self._tell(finished=False)
            return batch

    def _tell(self, *, finished: bool) -> None:
        loader = self._loader()
        if loader is not None:
            loader._advance(self, finished=finished)

    def close(self) -> None:
        """End the reading thread; the iterator gives nothing more."""
        with self._lock:
            self._batches.close()  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Caching:
    """Whether and how one split of a dataset in an object store is cached."""

    cache_dir: str | PathLike[str] | None
    options: CacheOptions | None
    split: str
    memory: int
    """For what is read ahead, and for fetching beside it."""
    tell: bool

    @property
    def memory_left(self) -> int:
        """For what is read ahead."""
        return self.memory - (0 if self.cache_dir is None else beside_bytes(self.memory))

    def open(self, dataset: Dataset) -> CachedSplit | None:
        """The copies of the split, if there are to be any."""
        if self.cache_dir is None:
            if self.tell:
                what = f"split {self.split!r} of {dataset.uri}"
                logger.info("%s is streamed: there is no cache (data.cache_dir).", what)
            return None
        return open_copies(
            dataset,
            self.split,
            self.cache_dir,
            self.options,
            memory=self.memory,
            tell=self.tell,
        )


def _check_options(
    batch_size: int, rank: int, world_size: int, pin_memory: bool, verify: str
) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is not one of {world_size} ranks (0 ... {world_size - 1})")
    if verify not in ("size", "crc"):
        raise ConfigError(f"verify must be 'size' or 'crc', got {verify!r}")
    if pin_memory and not torch.cuda.is_available():
        raise ConfigError("pin_memory needs a CUDA device, and there is none. Leave it out.")


def _depth(batch_size: int, memory_budget: int, share: float) -> int:
    """Batches read ahead within a share of the budget; one more is being filled meanwhile."""
    batch_bytes = batch_size * PAYLOAD_BYTES
    if memory_budget < 2 * batch_bytes:
        raise ConfigError(
            f"memory_budget of {memory_budget} bytes holds less than two batches of {batch_size} "
            f"stamps ({batch_bytes} bytes each). Raise it or use smaller batches."
        )
    return min(_MOST_AHEAD, max(1, int(share * memory_budget) // batch_bytes - 1))
