"""Where stamps to be scored come from: a converted dataset, a Phase 4c tree, a folder of cutouts.

Every origin is cut into parts of neighbouring rows, whatever the number of processes. A part is
read, scored and written as a whole, so that finished parts can be kept and no row is scored twice.

Datasets are read by the loader, and all else is decoded by `lensprep.decode.parts`, which is
imported only then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensprep.dataset import DECALS, MANIFEST_NAME, Dataset, Geometry, NormalizationSpec
from lensprep.dataset.kinds import cutout_stem
from lensprep.errors import CheckpointError, ConfigError, DatasetError, ShardError
from lensprep.store import Uri, is_remote, local_folder, local_path, open_store
from lensprep.tables.reader import local_table
from lenstrain.data import StampLoader
from lenstrain.networks.weights import require_geometry, trained_geometry

if TYPE_CHECKING:
    from lensprep.decode.parts import Plan

_log = logging.getLogger("lenstrain.origins")

PART_ROWS = 8192
"""Rows of a part of a dataset, rounded to whole batches."""


@dataclass(frozen=True)
class Part:
    """One part, while it is being read."""

    index: int
    batches: Iterator[Tensor]
    """Normalised pixels on the CPU, (B, bands, side, side), in order."""
    table: Callable[[], pa.Table]
    """Reads the columns of the same rows; in any thread, but for one part after the other."""
    rejects: pa.Table | None = None
    """Rows of the part that have no stamp, with their reasons; None of a dataset."""


class Origin(Protocol):
    """What `lenstrain infer` needs of stamps to be scored."""

    parts: Sequence[int]
    """Rows of each part; of a tree also rows that will be rejected."""
    split: str | None
    facts: dict[str, Any]
    """Metadata for the scores: dataset, dataset_id, source."""

    def check(self, meta: dict[str, Any], checkpoint: str) -> None:
        """Refuse a checkpoint of other stamps, or whose pixels or labels mean something else."""

    def read(self, parts: Sequence[int], *, pin_memory: bool = False) -> Iterator[Part]:
        """Parts in any order; each must be used up before the next."""


# ------------------------------------------------------------------------------- datasets


class DatasetOrigin:
    """A split of a converted dataset, in the order of the split.

    The other arguments are those of `StampLoader`.
    """

    def __init__(self, uri: Uri, split: str, batch_size: int, **loading: Any) -> None:
        self.split: str | None = split
        self._data = Dataset.open(uri)
        self._shards = self._data.split(split).shards
        self._name, self._batch, self._loading = split, batch_size, loading
        self._steps = max(1, PART_ROWS // batch_size)
        rows, size = sum(shard.rows for shard in self._shards), self._steps * batch_size
        self.parts: Sequence[int] = [min(size, rows - first) for first in range(0, rows, size)]
        self._schema: pa.Schema | None = None
        self._held: tuple[int, pa.Table] = (-1, pa.table({}))
        self.facts = {
            "dataset": self._data.uri,
            "dataset_id": self._data.dataset_id,
            "source": {"kind": "dataset"},
        }

    def check(self, meta: dict[str, Any], checkpoint: str) -> None:
        """Refuse a dataset of other stamps, normalisation or labels, with CheckpointError."""
        trained_on = trained_geometry(meta, checkpoint)
        require_geometry(trained_on, self._data.geometry, checkpoint, self._data.uri)
        trained = NormalizationSpec.from_dict(meta["normalization"])
        stored = self._data.manifest.normalization
        if trained.to_dict() != stored.to_dict():
            raise CheckpointError(
                f"{checkpoint} was trained on pixels of normalisation {spell(trained)}, but "
                f"{self._data.uri} holds {spell(stored)}. Convert the source again with the "
                "checkpoint's, or use a checkpoint trained with the dataset's."
            )
        if dict(meta["label_map"]) != dict(self._data.manifest.label_map):
            raise CheckpointError(
                f"{checkpoint} was trained with labels {meta['label_map']}, but "
                f"{self._data.uri} has {self._data.manifest.label_map}. Convert the source again "
                "with this version."
            )

    def read(self, parts: Sequence[int], *, pin_memory: bool = False) -> Iterator[Part]:
        """Parts in ascending order, with one look-ahead over neighbouring ones."""
        loader = StampLoader(
            self._data.uri,
            self._name,
            self._batch,
            shuffle=None,
            pin_memory=pin_memory,
            **self._loading,
        )
        try:
            for first, last in stretches(sorted(parts)):
                state = loader.state_dict()
                loader.load_state_dict(state | {"epoch": 0, "step": first * self._steps})
                batches = iter(loader)
                for index in range(first, last):
                    columns = partial(self._columns, index)
                    yield Part(index, self._batches(batches, index), columns)
        finally:
            loader.close()

    def _batches(self, batches: Iterator[Any], index: int) -> Iterator[Tensor]:
        row = index * self._steps * self._batch
        for batch in islice(batches, self._steps):
            real = int((batch.weight > 0).sum())
            expected = torch.arange(row, row + real)
            if not torch.equal(batch.index[:real], expected):
                raise DatasetError(
                    f"{self._data.uri}: row {row} of split {self._name} was read out of order. "
                    "The loader must read with shuffle=None."
                )
            row += real
            yield batch.pixels[:real]

    def _columns(self, index: int) -> pa.Table:
        """Sidecar rows of a part."""
        first = index * self._steps * self._batch
        stop = first + self.parts[index]
        tables, start = [], 0
        for number, shard in enumerate(self._shards):
            low, high = max(first, start), min(stop, start + shard.rows)
            if low < high:
                tables.append(self._sidecar(number).slice(low - start, high - low))
            start += shard.rows
        return pa.concat_tables(tables)

    def _sidecar(self, number: int) -> pa.Table:
        if self._held[0] != number:
            shard = self._shards[number]
            table = self._data.read_shard_sidecar(shard)
            missing = {"key", "task_id", "label", "region_id"} - set(table.column_names)
            if missing:
                raise ShardError(
                    f"{shard.sidecar} has no column {min(missing)!r}. Convert the source again."
                )
            if self._schema is None:
                self._schema = self._data.read_shard_sidecar(self._shards[0]).schema
            if table.schema != self._schema:
                raise ShardError(
                    f"{self._data.uri}/{shard.sidecar} has other columns than the first shard. "
                    "Run `lensprep verify`, and convert again."
                )
            self._held = (number, table)
        return self._held[1]


def stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers as (first, one past the last)."""
    start = 0
    for k in range(1, len(numbers) + 1):
        if k == len(numbers) or numbers[k] != numbers[k - 1] + 1:
            yield numbers[start], numbers[k - 1] + 1
            start = k


def spell(spec: NormalizationSpec) -> str:
    """Name a normalisation with all its numbers."""
    parameters = "".join(f", {name} {value}" for name, value in sorted(spec.parameters.items()))
    return f"{spec.mode} (clip {spec.clip:g}{parameters})"


# --------------------------------------------------------------------- what must be decoded


class DecodedOrigin:
    """Rows of a Phase 4c tree or a folder of cutouts, normalised as a checkpoint asks.

    `called` is the location as the user gave it, `normalization` the checkpoint's in plain types,
    and `source` the ``kind`` and other metadata of the source. There are as many decoding `workers`
    as processors if None.
    """

    def __init__(
        self,
        called: str,
        plan: Plan,
        split: str | None,
        batch_size: int,
        normalization: dict[str, Any],
        workers: int | None,
        source: dict[str, Any],
    ) -> None:
        for note in plan.notes:
            _log.warning("%s", note)
        self.split = split
        self.parts: Sequence[int] = [part.rows for part in plan.parts]
        self._plan, self._batch, self._workers = plan, batch_size, workers
        self._called, self._wanted = called, normalization
        self.facts: dict[str, Any] = {
            "dataset": called,
            "dataset_id": None,
            "source": source | {"digest": plan.digest, "files_of_no_row": plan.unused},
        }

    def check(self, meta: dict[str, Any], checkpoint: str) -> None:
        """Refuse a checkpoint of other stamps, or of another normalisation than the first."""
        trained_on = trained_geometry(meta, checkpoint)
        require_geometry(trained_on, self._plan.geometry, checkpoint, self._called)
        if dict(meta["normalization"]) != self._wanted:
            ours = NormalizationSpec.from_dict(self._wanted)
            theirs = NormalizationSpec.from_dict(meta["normalization"])
            raise CheckpointError(
                f"{checkpoint} was trained on pixels of normalisation {spell(theirs)}, the first "
                f"checkpoint with {spell(ours)}. An ensemble needs the same pixels."
            )

    def read(self, parts: Sequence[int], *, pin_memory: bool = False) -> Iterator[Part]:
        """Parts as they are decoded."""
        from lensprep.decode.parts import decode_parts

        spec = NormalizationSpec.from_dict(self._wanted)
        for part in decode_parts(self._plan, parts, spec, self._workers):
            batches = self._batches(part.pixels)
            yield Part(part.number, batches, lambda part=part: part.columns, part.rejects)  # type: ignore[misc]

    def _batches(self, pixels: NDArray[Any]) -> Iterator[Tensor]:
        for first in range(0, len(pixels), self._batch):
            # Copied: the file that these are mapped from may not be written to.
            yield torch.from_numpy(pixels[first : first + self._batch].copy())


# ------------------------------------------------------------------------- which of the three


def open_origin(
    uri: Uri,
    split: str,
    catalog: tuple[Uri, Mapping[str, str]] | None,
    batch_size: int,
    normalization: dict[str, Any],
    workers: int | None,
    loading: Mapping[str, Any],
    copies: ExitStack,
    geometry: Geometry = DECALS,
    survey: Uri = DECALS.survey,
) -> Origin:
    """The kind of origin that a location is: a manifest makes a dataset, a catalogue cutouts.

    `geometry` is that of the stamps that the checkpoint was trained on, and so of cutouts; `survey`
    says what those of a tree are. `copies` removes, when it closes, the local copies of cutouts and
    catalogue in a store.
    """
    tree = catalog is None and _is_tree(uri)
    if survey != DECALS.survey and not tree:
        raise ConfigError(
            f"--survey says what a tree of parquet files is, and {uri} is none: a dataset says so "
            "itself, and cutouts are taken to be as those of the checkpoint. Leave it out."
        )
    if catalog is None and not tree:
        return DatasetOrigin(uri, split, batch_size, **loading)
    from lensprep.decode.parts import plan_cutouts, plan_tree

    if catalog is None:
        plan = plan_tree(uri, split, survey)
        source = {"kind": "tree", **plan.source}
        return DecodedOrigin(str(uri), plan, split, batch_size, normalization, workers, source)
    # Cutouts are decoded file by file, from a disk.
    folder = copies.enter_context(local_folder(uri, wanted=_is_cutout))
    table = copies.enter_context(local_table(catalog[0]))
    plan = plan_cutouts(folder, table, catalog[1], str(uri), geometry)
    source = {"kind": "cutouts", "catalog": str(catalog[0])}
    return DecodedOrigin(str(uri), plan, None, batch_size, normalization, workers, source)


def _is_tree(uri: Uri) -> bool:
    """Whether a location holds parquet, and neither a dataset nor an unfinished conversion."""
    if is_remote(uri):
        if str(uri).endswith(".parquet"):
            return True
        store = open_store(uri)
        if store.has(MANIFEST_NAME):
            return False
        names = [entry.name for entry in store.entries()]
        return any(name.endswith(".parquet") for name in names) and not any(
            name.startswith(".work/") for name in names
        )
    path = local_path(uri)
    if path.is_file():
        return path.name.endswith(".parquet")
    if not path.is_dir() or (path / MANIFEST_NAME).exists() or (path / ".work").exists():
        return False
    return next(path.rglob("*.parquet"), None) is not None


def _is_cutout(name: str) -> bool:
    return cutout_stem(name) is not None
