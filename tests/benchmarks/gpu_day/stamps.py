"""The dataset of a visit: noise with rings that a finder can learn, made by all processors.

A program of its own without torch, which every process of the pool would import.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from lensprep.dataset import MANIFEST_NAME, Manifest, ShardInfo, SplitInfo
from lensprep.dataset.layout import shard_name, sidecar_name
from lensprep.dataset.writer import write_dataset
from tests.benchmarks.gpu_day.place import Place
from tests.datasets import SPEC, tiny_pixels, tiny_table

DISTINCT = 2048
"""Images that differ; a shard repeats them, as drawing each would take half of the time."""


@dataclass(frozen=True)
class Shard:
    """One shard to be made."""

    split: str
    index: int
    rows: int


def plan(shard_rows: int, shards: int) -> list[Shard]:
    """So many full shards to train on, and an eighth as many rows to validate on."""
    training = [Shard("train", index, shard_rows) for index in range(shards)]
    whole, rest = divmod(shards * shard_rows // 8, shard_rows)
    sizes = [shard_rows] * whole + [rest] * (rest > 0)
    return training + [Shard("val", index, rows) for index, rows in enumerate(sizes)]


def make_dataset(folder: Path, shards: list[Shard], processes: int) -> Manifest:
    """Write each shard as a dataset of its own, then join them under one manifest."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(write_part, [folder] * len(shards), shards))
    splits = {
        split: _joined(info for shard, info in zip(shards, parts, strict=True)
                       if shard.split == split)
        for split in ("train", "val")
    }  # fmt: skip
    manifest = Manifest(normalization=SPEC, splits=splits)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return manifest


def write_part(folder: Path, shard: Shard) -> SplitInfo:
    """Write one shard, and move it to where it belongs in the joined dataset."""
    table = tiny_table(shard.rows, shard.split, shard.index)
    first = shard.index << 20  # of the keys and regions of this shard, which no other has
    number = 1 if shard.split == "train" else 2
    columns = {
        "key": pa.array([f"{number:x}{first + row:031x}" for row in range(shard.rows)]),
        "region_id": pa.array(((number << 29) + first + np.arange(shard.rows) // 3).astype("i4")),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    few = min(shard.rows, DISTINCT)
    labels = table["label"].to_numpy()
    drawn = tiny_pixels(few, shard.index, labels[:few])
    drawn[:, 0, 0, 0] = 0  # tests find the number of the row there, beyond the clip
    pixels = drawn[np.arange(shard.rows) % few]
    apart = folder / f"{shard.split}-{shard.index}"
    made = write_dataset(apart, {shard.split: (pixels, table)}, SPEC, shard_rows=shard.rows)
    split = made.splits[shard.split]
    (folder / shard.split).mkdir(exist_ok=True)
    moved = tuple(_move(apart, folder, shard, each) for each in split.shards)
    shutil.rmtree(apart)
    return replace(split, shards=moved)


def _move(apart: Path, folder: Path, shard: Shard, info: ShardInfo) -> ShardInfo:
    name, sidecar = (make(shard.split, shard.index) for make in (shard_name, sidecar_name))
    (apart / info.name).rename(folder / name)
    (apart / info.sidecar).rename(folder / sidecar)
    return replace(info, name=name, sidecar=sidecar)


def _joined(parts: Iterable[SplitInfo]) -> SplitInfo:
    infos = list(parts)
    return SplitInfo(
        rows=sum(info.rows for info in infos),
        classes={label: sum(info.classes[label] for info in infos) for label in ("0", "1")},
        regions=sum(info.regions for info in infos),
        shards=tuple(shard for info in infos for shard in info.shards),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=12, help="to train on")
    given, place = Place.parse(parser)
    started = time.time()
    shards = plan(64, 2) if place.dry else plan(16_384, given.shards)
    processes = min(len(shards), os.cpu_count() or 1)
    made = make_dataset(Path(place.dataset), shards, processes)
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in made.splits.items())
    place.table.say(f"dataset: {rows} stamps, made in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
