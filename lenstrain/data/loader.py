"""`StampLoader`: exact epochs of stamps, for any number of ranks, resumable at any step."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
import webdataset as wds
from numpy.typing import ArrayLike, NDArray

from lensprep.configfile import converted
from lensprep.dataset import Geometry
from lensprep.errors import CheckpointError, ConfigError
from lensprep.store import S3Options
from lenstrain.data.batch import Batch, PixelPool
from lenstrain.data.cache.folder import CacheOptions
from lenstrain.data.mixture import read_mixture
from lenstrain.data.order import EpochOrder, OrderSpec, Shuffle, block_bounds, order_key
from lenstrain.data.selection import Sampling, Selecting, select
from lenstrain.data.sources.base import MEMORY_BUDGET, Reading, Verify
from lenstrain.data.split import SplitData, open_split
from lenstrain.data.stream import OneProcess, PlanSteps, announce, gather_pixels, read_ahead

logger = logging.getLogger("lenstrain.data")

STATE_VERSION = 1


class StampLoader(OneProcess, wds.PipelineStage):
    """Batches of stamps from a converted dataset.

    Every row comes exactly once an epoch over all ranks, every rank takes the same number of
    steps, and the order depends on (seed, epoch, dataset, global batch size) alone. The last batch
    is filled with rows of weight 0, or left out.

    Iterating gives one epoch and then moves on to the next by itself; `set_epoch` chooses the next
    one. An iteration that is broken off starts its epoch again, unless a state is loaded.

    It belongs to the process that made it. Every worker process of a `torch.utils.data.DataLoader`
    would give every row again, so it is refused there, and after a fork.

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
        global shuffle the shards are fetched before the first batch; otherwise during the first
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
    rates : mapping of str to float, optional
        Relative rates of rows by origin, ``{"real": 10, "simulated": 1}``, or by any expression on
        sidecar columns, ``{"kind == 'ring'": 5}``. Those that apply to a row multiply, also with
        its weight; every epoch holds as much of each as any other, to within one row.
    counterfactual_share : float, optional
        Share of an epoch's rows that are counterfactuals (`lensprep counterfactual`), in [0, 1).
        They come besides the ordinary rows, which alone are limited, balanced and weighted;
        `where` must be true of each and of the lens of its family. 0 leaves them out. By default
        they are rows like any other.
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
        If the object store or the cache's disk refuses, or does not answer.
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
        rates: Mapping[str, float] | None = None,
        counterfactual_share: float | None = None,
        s3: S3Options | None = None,
        cache: CacheOptions | None = None,
    ) -> None:
        super().__init__()
        # Plain types from here on: they end up in the state, which is loaded with weights_only.
        self.split = converted(str, split, "split")
        self.batch_size = converted(int, batch_size, "batch_size")
        self.rank = converted(int, rank, "rank")
        self.world_size = converted(int, world_size, "world_size")
        selecting = Selecting(
            where=converted(str | None, where, "where"),
            limit=converted(int | None, limit, "limit"),
            sampling=converted(str, sampling, "sampling"),
            weights=weights,
            rates=converted(dict[str, float], rates or {}, "rates"),
            counterfactual_share=converted(
                float | None, counterfactual_share, "counterfactual_share"
            ),
        )
        order = {
            "seed": converted(int, seed, "seed"),
            "shuffle": shuffle if shuffle is None else converted(str, shuffle, "shuffle"),
            "drop_last": converted(bool, drop_last, "drop_last"),
        }
        reading = Reading(
            batch_size=self.batch_size,
            memory_budget=memory_budget,
            verify=verify,
            cache_dir=cache_dir,
            cache=cache,
            log=self.rank == 0,
        )
        if not 0 <= self.rank < self.world_size:
            ranks = f"{self.world_size} ranks (0 ... {self.world_size - 1})"
            raise ConfigError(f"rank {self.rank} is not one of {ranks}")
        if pin_memory and not torch.cuda.is_available():
            raise ConfigError("pin_memory needs a CUDA device, and there is none. Leave it out.")
        self._epoch, self._next_step, self._done = 0, 0, 0
        self._current: _Epoch | None = None
        self.data: SplitData = open_split(uri, self.split, reading, s3)
        self.source = self.data.source
        try:
            self.selection = select(self.data, selecting)
            self.spec = self._make_spec(**order)
            any_order = self.spec.shuffle == "global"
            steps = None if any_order else self._first_steps()
            self.source.prepare(self.selection.positions, steps)
        except BaseException:
            self.source.close()
            raise
        self.depth = self.source.depth
        self._pool = PixelPool(
            self.batch_size, self.source.shape, keep=self.depth + 2, pin_memory=pin_memory
        )
        if self.spec.shuffle == "block" and self.rank == 0:
            logger.info(
                "%s: the block shuffle mixes over %s of %s samples.",
                self.data.title,
                f"{self.mixing_window:,}",
                f"{self.spec.rows:,}",
            )

    def _make_spec(self, **order: Any) -> OrderSpec:
        name = "/".join(
            part for part in (self.data.identity, self.split, self.selection.digest) if part
        )
        try:
            spec = OrderSpec(
                rows=self.selection.epoch_rows,
                global_batch=self.batch_size * self.world_size,
                dataset_id=name,
                **order,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not spec.steps:
            raise ConfigError(
                f"split {self.split!r} gives {spec.rows} rows an epoch, less than one global batch "
                f"of {spec.global_batch}, and drop_last leaves that out. Use smaller batches."
            )
        return spec

    def _first_steps(self) -> Iterator[NDArray[np.int64]]:
        """Rows of the first steps: enough to see how much a mixing window needs at once."""
        steps = min(len(self), 2 * self.mixing_window // self.spec.global_batch + 2, 1024)
        for plan in islice(self._plans().run(), steps):
            yield plan.index

    @property
    def geometry(self) -> Geometry | None:
        """Bands, side and scale of the stamps; None of stock tars, which do not state them."""
        return self.data.geometry

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
        """Choose the epoch of the next iteration.

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
        return wds.DataPipeline(
            self._plans(start),
            announce(self.source, self.source.lookahead),
            gather_pixels(self.source, self.data.labels, self._pool),
            read_ahead(self.depth),
        )

    def composition(self, epoch: int) -> dict[str, dict[str, Any]]:
        """What an epoch holds of each origin, and of what each of the rates applies to.

        Returns
        -------
        dict
            As `lenstrain.data.mixture.Mixture.count`; empty if there are no rates and all rows are
            of one origin.
        """
        mixture = self.selection.mixture
        if mixture is None and len(self.data.origins[0]) > 1:
            mixture = read_mixture(self.data, {})
        if mixture is None or len(mixture.parts) < 2:
            return {}
        rows = self.selection.epoch(order_key(self.spec, epoch))
        return mixture.count(rows, self.data.all_labels())

    def _plans(self, start: int = 0) -> PlanSteps:
        """Plan this rank's share of the steps of the present epoch."""
        rows = self.selection.epoch(order_key(self.spec, self._epoch))
        blocks = None
        if self.spec.shuffle == "block":
            bounds = np.cumsum([0, *self.data.shard_rows])
            in_epoch = bounds if rows is None else np.searchsorted(rows, bounds)
            blocks = block_bounds(np.diff(in_epoch))
        order = EpochOrder(self.spec, self._epoch, blocks)
        return PlanSteps(order, rows, start=start, rank=self.rank, world_size=self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of the present epoch, from the step of a loaded state on."""
        self.require_own_process()
        if self._current is not None:
            self._current.close()
        self.source.start_epoch()
        start, self._next_step = self._next_step, 0
        self._done = start
        self._current = _Epoch(self, self.pipeline(start).iterator1())
        return self._current

    def run(self, *_: Any) -> Iterator[Batch]:
        """Be the first stage of a `webdataset.DataPipeline`."""
        return iter(self)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: plain numbers, independent of the ranks.

        It counts the batches handed out, not those read ahead.
        """
        state = self._identity()
        state.update(version=STATE_VERSION, epoch=self._epoch, step=self._done)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, on any number of ranks of the same global batch.

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
                f"the loader's state is at epoch {epoch}, step {step}, which does not exist"
            )
        if step == len(self):
            epoch, step = epoch + 1, 0
        if self._current is not None:
            self._current.close()
        self._epoch, self._next_step, self._done = epoch, step, step

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset_id": self.data.identity,
            "split": self.split,
            "selection": self.selection.digest,
            "seed": self.spec.seed,
            "shuffle": self.spec.shuffle,
            "global_batch": self.spec.global_batch,
            "drop_last": self.spec.drop_last,
        }

    def forget_checks(self) -> None:
        """With ``verify="crc"``: check every stamp again when it is next read."""
        self.source.forget_checks()

    def close(self) -> None:
        """End reading and unmap the shards; batches handed out stay valid."""
        self.require_own_process()
        if self._current is not None:
            self._current.close()
        self.source.close()

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
            batch = next(self._batches, None)
            if (loader := self._loader()) is not None:
                loader._advance(self, finished=batch is None)
        if batch is None:
            raise StopIteration
        return batch

    def close(self) -> None:
        """End the reading thread; the iterator gives nothing more."""
        with self._lock:
            self._batches.close()  # type: ignore[attr-defined]
