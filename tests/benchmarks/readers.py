"""The contestants: each delivers shuffled epochs of (pixels, labels) in batches, on one core.

A reader's class imports its package when it is made, so that one that is not installed is left
out with the reason. `write` puts the stamps into its own format, once. Each is configured as its
own documentation advises for speed from a local disk. None gets worker processes: with one core
they would only take turns with the reader, and copy every batch once more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import torch

from lensprep.dataset import PAYLOAD_BYTES, STAMP_SHAPE
from lenstrain.bench.loader import LIMIT_BUFFERS
from tests.benchmarks.stamps import SPLIT, Stamps

BATCH = 256
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Pixels float16 (256, 3, 64, 64), labels int64 (256,)."""


class Reader:
    """One way to read the stamps.

    Parameters
    ----------
    stamps : Stamps

    Raises
    ------
    ImportError
        If the package is not installed.
    """

    title: ClassVar[str]
    package: ClassVar[str | None] = None
    """Name of the distribution whose version the table shows."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        self.folder = stamps.folder / type(self).__name__.lower()
        self.rng = np.random.default_rng(0)
        self.epochs = 0

    def write(self) -> None:
        """Put the stamps into the reader's format; `self.folder` is not there yet."""

    def epoch(self) -> Batches:
        """One epoch, in another order each time."""
        raise NotImplementedError

    def permutation(self) -> np.ndarray:
        return self.rng.permutation(len(self.stamps.labels))

    def orders(self) -> list[np.ndarray]:
        """The rows of each batch of a shuffled epoch."""
        rows = self.permutation()
        return [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]

    def close(self) -> None:
        """Let go of what other processes could trip over."""


class Seed(Reader):
    """As upstream trains from the parquet: decode, normalise and cast every row in every epoch.

    Part files and row groups in random order, the rows of a group in random order.
    """

    title = "the seed path: parquet, `np.load`, `np.median`"
    package = "numpy"

    def epoch(self) -> Batches:
        pixels, labels = [], []
        for stamp, label in self._rows():
            pixels.append(torch.from_numpy(stamp))
            labels.append(label)
            if len(labels) == BATCH:
                yield torch.stack(pixels), torch.tensor(labels)
                pixels, labels = [], []
        if labels:
            yield torch.stack(pixels), torch.tensor(labels)

    def _rows(self) -> Iterator[tuple[np.ndarray, int]]:
        paths = sorted((self.stamps.tree / f"region_split={SPLIT}").glob("*.parquet"))
        for number in self.rng.permutation(len(paths)):
            with pq.ParquetFile(paths[number]) as file:
                for group in self.rng.permutation(file.num_row_groups):
                    columns = ["stamp_npz", "is_control"]
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    rows = table.to_pylist()
                    for row in self.rng.permutation(len(rows)):
                        found = rows[row]
                        yield seed_stamp(found["stamp_npz"]), 1 - int(found["is_control"])


def seed_stamp(blob: bytes) -> np.ndarray:
    """One stamp by NumPy alone: float16, shape (3, 64, 64)."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as archive:
        pixels = np.stack([archive[f"image_{band}"] for band in "grz"]).astype(np.float32)
    for band in pixels:
        centre = np.median(band)
        mad = np.median(np.abs(band - centre))
        band[:] = (band - centre) / np.float32(1.4826 * mad)
    return np.clip(pixels, -10, 10).astype(np.float16)


class StockWebDataset(Reader):
    """https://webdataset.github.io/webdataset: shuffled shards, a shuffle buffer, ``.decode()``."""

    title = "webdataset, stock: `.decode()`"
    package = "webdataset"

    def samples(self) -> Any:
        import webdataset as wds

        self.epochs += 1
        urls = self.stamps.shards
        stream = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False, seed=self.epochs)
        return stream.shuffle(1000, initial=100)

    def epoch(self) -> Batches:
        batches = self.samples().decode().to_tuple("stamp.npy", "json").batched(BATCH)
        for pixels, fields in batches:
            yield torch.from_numpy(pixels), torch.tensor([each["label"] for each in fields])


class CheapWebDataset(StockWebDataset):
    """The least that its pipeline can be made to do: no ``.npy`` header parsed, no JSON decoded."""

    title = "webdataset, cheapest decode written by hand"

    def epoch(self) -> Batches:
        yield from self.samples().map(_cheap_sample).batched(BATCH, collation_fn=_cheap_batch)


def _cheap_sample(sample: dict[str, Any]) -> tuple[np.ndarray, int]:
    fields = sample["json"]
    place = fields.index(b'"label":') + len(b'"label":')
    stamp = sample["stamp.npy"]
    return np.frombuffer(stamp, "<f2", offset=len(stamp) - PAYLOAD_BYTES), int(
        fields[place : fields.index(b",", place)]
    )


def _cheap_batch(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.concatenate([stamp for stamp, _ in samples]).reshape(-1, *STAMP_SHAPE)
    return torch.from_numpy(pixels), torch.tensor([label for _, label in samples])


class LitData(Reader):
    """https://github.com/Lightning-AI/litData: ``optimize`` with chunks of 64 MB as in its README,
    arrays as its own serializer stores them, `StreamingDataLoader`.
    """

    title = "litdata"
    package = "litdata"

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        import litdata

        self.litdata = litdata

    def write(self) -> None:
        item = partial(_litdata_item, self.stamps.folder)
        rows = range(len(self.stamps.labels))
        with _quiet():
            self.litdata.optimize(
                fn=item, inputs=list(rows), output_dir=str(self.folder), chunk_bytes="64MB",
                num_workers=1, verbose=False,
            )  # fmt: skip

    def epoch(self) -> Batches:
        self.epochs += 1
        dataset = self.litdata.StreamingDataset(str(self.folder), shuffle=True, seed=self.epochs)
        loader = self.litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
        for batch in loader:
            yield batch["stamp"], batch["label"]


def _litdata_item(folder: Path, row: int) -> dict[str, Any]:
    pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    return {
        "stamp": torch.from_numpy(pixels[row]),
        "label": int(np.load(folder / "labels.npy")[row]),
    }


class Mosaic(Reader):
    """https://docs.mosaicml.com/projects/streaming: MDS with arrays of fixed dtype and shape (the
    encoding without a header in every sample), its shards of 64 MB, a local folder, ``py1e``.
    """

    title = "mosaicml-streaming"
    package = "mosaicml-streaming"

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        import streaming

        self.streaming = streaming
        self.dataset: Any = None
        # What a run that was killed left in /dev/shm would stop this one: its own remedy.
        streaming.base.util.clean_stale_shared_memory()

    def write(self) -> None:
        shape = ",".join(map(str, STAMP_SHAPE))
        columns = {"stamp": f"ndarray:float16:{shape}", "label": "int"}
        with self.streaming.MDSWriter(out=str(self.folder), columns=columns) as out:
            for stamp, label in zip(self.stamps.pixels, self.stamps.labels, strict=True):
                out.write({"stamp": stamp, "label": int(label)})

    def epoch(self) -> Batches:
        if self.dataset is None:
            self.dataset = self.streaming.StreamingDataset(
                local=str(self.folder), shuffle=True, batch_size=BATCH
            )
        loader = self.streaming.StreamingDataLoader(self.dataset, batch_size=BATCH, num_workers=0)
        for batch in loader:
            yield batch["stamp"], batch["label"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Some show progress bars that cannot be switched off."""
    with io.StringIO() as sink, redirect_stdout(sink), redirect_stderr(sink):
        yield


class HuggingFace(Reader):
    """https://huggingface.co/docs/datasets: Arrow on disk, mapped; a feature of fixed shape, and
    whole batches by index in the format of torch, as its page on PyTorch advises.
    """

    title = "Hugging Face datasets (Arrow), `Array3D`"
    package = "datasets"

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        import datasets

        self.datasets = datasets
        self.table: Any = None
        datasets.disable_progress_bars()

    def column(self) -> tuple[Any, Any]:
        """Values and feature of the stamps."""
        return np.asarray(self.stamps.pixels), self.datasets.Array3D(STAMP_SHAPE, "float16")

    def write(self) -> None:
        values, feature = self.column()
        features = self.datasets.Features({"stamp": feature, "label": self.datasets.Value("int64")})
        columns = {"stamp": values, "label": self.stamps.labels}
        self.datasets.Dataset.from_dict(columns, features).save_to_disk(str(self.folder))

    def epoch(self) -> Batches:
        if self.table is None:
            # Without a dtype it makes every float a float32, which takes longer.
            table = self.datasets.load_from_disk(str(self.folder))
            self.table = table.with_format("torch", dtype=torch.float16)
        for rows in self.orders():
            batch = self.table[rows]
            yield batch["stamp"], batch["label"].to(torch.int64)


class HuggingFaceBytes(HuggingFace):
    """The least that it can be made to do: a column of bytes, one array made of a batch of them."""

    title = "Hugging Face datasets (Arrow), bytes decoded by hand"

    def column(self) -> tuple[Any, Any]:
        return [stamp.tobytes() for stamp in self.stamps.pixels], self.datasets.Value("binary")

    def epoch(self) -> Batches:
        if self.table is None:
            self.table = self.datasets.load_from_disk(str(self.folder))
        for rows in self.orders():
            batch = self.table[rows]
            memory = bytearray().join(batch["stamp"])
            pixels = torch.frombuffer(memory, dtype=torch.float16).view(-1, *STAMP_SHAPE)
            yield pixels, torch.tensor(batch["label"])


class Ffcv(Reader):
    """https://docs.ffcv.io: ``OrderOption.RANDOM``, the file in the page cache (``os_cache``).

    Its arrays cannot be float16: they are stored as int16 and viewed as float16.
    """

    title = "FFCV (as int16: it has no float16), order RANDOM"
    package = "ffcv"

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        from ffcv import loader  # needs OpenCV and libturbojpeg when it is built

        self.module = loader
        self.loader: Any = None

    def write(self) -> None:
        from ffcv.fields import IntField, NDArrayField
        from ffcv.writer import DatasetWriter

        self.folder.mkdir()
        fields = {"stamp": NDArrayField(np.dtype("int16"), STAMP_SHAPE), "label": IntField()}
        writer = DatasetWriter(str(self.folder / "stamps.beton"), fields, num_workers=1)
        pixels = self.stamps.pixels.view(np.int16)
        with _quiet():
            writer.from_indexed_dataset(list(zip(pixels, self.stamps.labels.tolist(), strict=True)))

    def epoch(self) -> Batches:
        if self.loader is None:
            from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
            from ffcv.transforms import ToTensor

            self.loader = self.module.Loader(
                str(self.folder / "stamps.beton"), batch_size=BATCH, num_workers=1, os_cache=True,
                order=self.module.OrderOption.RANDOM, drop_last=False, seed=1,
                pipelines={
                    "stamp": [NDArrayDecoder(), ToTensor()],
                    "label": [IntDecoder(), ToTensor()],
                },
            )  # fmt: skip
        for pixels, labels in self.loader:
            yield pixels.view(torch.float16), labels.reshape(-1)


class Limit(Reader):
    """``torch.index_select`` from one mapped array, into as many buffers as ours has."""

    title = "the limit: memmap and `torch.index_select(out=)`"
    package = "torch"

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        self.source = torch.from_numpy(stamps.pixels)
        self.labels = torch.from_numpy(stamps.labels)
        shape = (BATCH, *STAMP_SHAPE)
        self.outs = [torch.empty(shape, dtype=torch.float16) for _ in range(LIMIT_BUFFERS)]

    def epoch(self) -> Batches:
        for number, rows in enumerate(self.orders()):
            index = torch.from_numpy(rows)
            out = self.outs[number % LIMIT_BUFFERS][: len(rows)]
            torch.index_select(self.source, 0, index, out=out)
            yield out, self.labels[index]


class Ours(Reader):
    """`lenstrain.data.StampLoader` as it is by default."""

    title = "**StampLoader**, global shuffle"
    shuffle: ClassVar[Any] = "global"

    def __init__(self, stamps: Stamps) -> None:
        super().__init__(stamps)
        from lenstrain.data import StampLoader

        self.loader = StampLoader(stamps.dataset, SPLIT, BATCH, shuffle=self.shuffle)

    def epoch(self) -> Batches:
        for batch in self.loader:
            yield batch.pixels, batch.labels  # no filler: the rows are whole batches

    def close(self) -> None:
        self.loader.close()


class OursBlock(Ours):
    """The order that an object store is read in, here from the page cache."""

    title = "**StampLoader**, block shuffle"
    shuffle = "block"


READERS: tuple[type[Reader], ...] = (
    Seed,
    StockWebDataset,
    CheapWebDataset,
    LitData,
    Mosaic,
    HuggingFace,
    HuggingFaceBytes,
    Ffcv,
    OursBlock,
    Ours,
    Limit,
)
