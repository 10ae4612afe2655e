"""The stamps that all readers of the comparison deliver, made once into a folder.

FOLDER/stamps/       Phase 4c parquet, one compressed NPZ a row
FOLDER/dataset/      what `lensprep convert` makes of it
FOLDER/pixels.npy    the same stamps in the dataset's order, float16 (rows, 3, 64, 64)
FOLDER/labels.npy    their labels, int64
FOLDER/<reader>/     the same in the format of each other reader
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from tests.phase4c import stamp_blob, tiny_pixels, tiny_table, write_tree
from tests.realstamps import FOLDER as REAL
from tests.realstamps import real_pixels

SPLIT = "train"
SHARD_ROWS = 1024
_ROW_GROUP = 512


@dataclass(frozen=True)
class Stamps:
    """Where the stamps lie, and what they are."""

    folder: Path
    pixels: np.ndarray
    labels: np.ndarray
    source: str

    @property
    def tree(self) -> Path:
        return self.folder / "stamps"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def shards(self) -> list[str]:
        return [str(path) for path in sorted((self.dataset / SPLIT).glob("*.tar"))]


def make_stamps(folder: Path, rows: int) -> Stamps:
    """Make so many stamps, or open those that an earlier run has made in this folder.

    They are crops of real DR10 cutouts where those are at hand (see `tests.realstamps`), else noise
    with a galaxy: it is the seed path alone, which inflates them, to which that matters.
    """
    made = folder / "made.txt"
    if not made.exists():
        source = "crops of real DR10 cutouts" if any(REAL.glob("*.npz")) else "noise and a galaxy"
        _write(folder, rows, real_pixels(rows) if "real" in source else tiny_pixels(rows))
        made.write_text(source)
    pixels = np.load(folder / "pixels.npy", mmap_mode="c")
    if len(pixels) != rows:
        raise SystemExit(f"{folder} holds {len(pixels)} stamps, not {rows}: give another --folder")
    return Stamps(folder, pixels, np.load(folder / "labels.npy"), made.read_text())


def _write(folder: Path, rows: int, pixels: np.ndarray) -> None:
    blobs = [stamp_blob(stamp) for stamp in pixels]
    table = tiny_table(rows, stamp_npz=blobs, region_split=SPLIT)
    tree = write_tree(folder / "stamps", table, row_group_rows=_ROW_GROUP)
    config = ConvertConfig(shard_rows=SHARD_ROWS, normalize="mad_stamp")  # as `readers.seed_stamp`
    convert(str(tree), str(folder / "dataset"), config, workers=1)
    dataset = Dataset.open(folder / "dataset")
    labels = dataset.read_sidecar(SPLIT, ["label"])["label"].to_numpy().astype(np.int64)
    if len(labels) != rows:
        raise SystemExit(f"conversion kept {len(labels)} of {rows} stamps")
    np.save(folder / "labels.npy", labels)
    np.save(folder / "pixels.npy", dataset.read_pixels(SPLIT, np.arange(rows)))
