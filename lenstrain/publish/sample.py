"""Some stamps of the test split as a small dataset, so that the finder can be run from the folder.

``sample/`` is a dataset by itself; ``scores/sample.parquet`` holds what the exported finder gives
for the flux of its stamps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset import MANIFEST_NAME, Dataset, Manifest, SplitInfo
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.sidecar import count_kinds, join_tables, read_statistics
from lensprep.dataset.writer import write_shard
from lensprep.tables.writer import write_table
from lenstrain.export import open_exported

SAMPLE: Final = "sample"
SAMPLE_ROWS: Final = 256
"""Stamps in the folder: if 1.2 % of all scores were altered, one is found in 95 % of cases."""
OUTPUTS: Final = "scores/sample.parquet"
WEIGHTS: Final = "weights/finder"
REFERENCE: Final = ".onnx"
"""The format whose outputs are stored."""
_SPLIT: Final = "test"


def write_sample(folder: Path, dataset: Dataset, rows: int, seed: int) -> None:
    """Write stamps of the test split, drawn at random, and what the exported finder gives for them.

    Parameters
    ----------
    folder : Path
        The publication, which has the weights.
    dataset : Dataset
    rows : int
        All of the split if it has fewer. Records have the bytes that they have in the dataset.
    seed : int
    """
    split, manifest = dataset.split(_SPLIT), dataset.manifest
    chosen = np.random.default_rng(seed).choice(split.rows, min(rows, split.rows), replace=False)
    records, tables, first = [], [], 0
    for shard in split.shards:
        mine = np.sort(chosen[(chosen >= first) & (chosen < first + shard.rows)]) - first
        first += shard.rows
        if len(mine):
            records += [dataset.read_records(shard, row, row + 1) for row in mine.tolist()]
            tables.append(dataset.read_shard_sidecar(shard).take(mine))
    table = join_tables(tables, f"{dataset.uri}: the sidecars of {_SPLIT}")
    labels = table["label"].to_pylist()
    (folder / SAMPLE / _SPLIT).mkdir(parents=True)
    info = SplitInfo(
        rows=table.num_rows,
        classes={"0": labels.count(0), "1": labels.count(1)},
        regions=pc.count_distinct(table["region_id"], mode="all").as_py(),
        shards=(write_shard(folder / SAMPLE, _SPLIT, 0, records, table, manifest.geometry),),
        counterfactuals=count_kinds(table),
    )
    sample = Manifest(
        normalization=manifest.normalization,
        splits={_SPLIT: info},
        geometry=manifest.geometry,
        label_map=manifest.label_map,
    )
    (folder / SAMPLE / MANIFEST_NAME).write_text(sample.to_json(), encoding="utf-8")
    keys, _, flux = read_sample(folder)
    logit, probability = open_exported(folder / f"{WEIGHTS}{REFERENCE}")(flux)
    outputs = pa.table({"key": keys, "logit": logit, "probability": probability})
    write_table(folder / OUTPUTS, outputs, {})


def read_sample(folder: Path) -> tuple[pa.ChunkedArray, NDArray[np.float16], NDArray[np.float32]]:
    """Keys of the sample of a publication, its stored pixels and their flux, (n, bands, S, S)."""
    sample = Dataset.open(folder / SAMPLE)
    table = sample.read_sidecar(_SPLIT)
    pixels = sample.read_pixels(_SPLIT, np.arange(table.num_rows))
    statistics = read_statistics(table, sample.geometry)
    flux = denormalize(pixels, sample.manifest.normalization, *statistics)
    return table["key"], pixels, flux
