"""Write the manifest and sparse shards of ten million rows, or take a first batch of them.

Run as a program by `test_scale`, so that memory is that of a fresh process::

    python -m tests.lenstrain.data.ten_million DATASET
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.dataset import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.geometry import DECALS
from lensprep.dataset.layout import shard_name, sidecar_name
from tests.datasets import SPEC, tiny_table

ROWS = 10_000_000
SHARD_ROWS = 8192


def write(root: Path) -> None:
    """Shards are holes of the right size; sidecars are two real files under many names."""
    rows = [SHARD_ROWS] * (ROWS // SHARD_ROWS) + [ROWS % SHARD_ROWS]
    sidecars: dict[int, Path] = {}
    infos = []
    for number, count in enumerate(rows):
        with_tar = root / shard_name("train", number)
        with_tar.parent.mkdir(parents=True, exist_ok=True)
        with with_tar.open("wb") as file:
            file.truncate(DECALS.shard_bytes(count))
        side = root / sidecar_name("train", number)
        if count in sidecars:
            os.link(sidecars[count], side)
        else:
            table = tiny_table(count)
            crc = pa.array(np.zeros(count, np.uint32))
            table = table.append_column("payload_crc32", crc)
            # As many columns as a real sidecar, or reading one of them would look too cheap.
            for extra in range(60):
                table = table.append_column(f"extra_{extra}", pa.nulls(count, pa.float64()))
            pq.write_table(table, side, compression="zstd")
            sidecars[count] = side
        infos.append(
            ShardInfo(
                name=shard_name("train", number),
                rows=count,
                bytes=DECALS.shard_bytes(count),
                sha256=f"{number:064x}",
                sidecar=sidecar_name("train", number),
                sidecar_bytes=side.stat().st_size,
                sidecar_sha256="0" * 64,
            )
        )
    lenses = sum(count // 2 for count in rows)
    classes = {"0": ROWS - lenses, "1": lenses}
    split = SplitInfo(rows=ROWS, classes=classes, regions=0, shards=tuple(infos))
    manifest = Manifest(normalization=SPEC, splits={"train": split})
    (root / "manifest.json").write_text(manifest.to_json())


def memory(what: str) -> int:
    """Bytes of this process: ``VmRSS`` now, or ``VmHWM`` at most."""
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def first_batch(root: str) -> None:
    """Print seconds to the first batch and the memory it took, as JSON."""
    from lenstrain.data import StampLoader

    budget = 64 << 20
    before = memory("VmRSS")
    start = time.perf_counter()
    loader = StampLoader(root, batch_size=256, seed=1, memory_budget=budget)
    batch = next(iter(loader))
    seconds = time.perf_counter() - start
    over = memory("VmHWM") - before - budget
    print(json.dumps({"seconds": seconds, "over_budget": over, "rows": int(batch.weight.sum())}))
    loader.close()


if __name__ == "__main__":
    first_batch(sys.argv[1])
