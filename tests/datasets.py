"""Small real datasets for tests, written through the dataset package itself."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Geometry, NormalizationSpec
from lensprep.dataset.writer import write_dataset
from lensprep.store import Store

SPEC = NormalizationSpec(mode="mad_stamp", clip=10.0)
PAIR = Geometry(
    survey="pair",
    bands=("nir", "Y"),
    side=32,
    pixel_scale_arcsec=0.3,
    reference_band="Y",
    zero_point=27.0,
    sky_noise=(0.02, 0.05),
)
"""Another survey than DECaLS, with small stamps: format 2."""


def tiny_pixels(
    rows: int,
    seed: int = 0,
    labels: NDArray[Any] | None = None,
    geometry: Geometry = DECALS,
) -> NDArray[np.float16]:
    """Noise stamps; row ``i`` has ``i % 2048`` in its first pixel. A lens has a bright ring."""
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((rows, *geometry.shape), np.float32).astype("<f2")
    if labels is not None:
        y, x = np.mgrid[: geometry.side, : geometry.side] - (geometry.side - 1) / 2
        ring = (np.abs(np.hypot(y, x) - 6) < 1.5).astype("<f2") * 2
        pixels[labels == 1] += ring
    pixels[:, 0, 0, 0] = np.arange(rows) % 2048
    return pixels


def tiny_table(
    rows: int, split: str = "train", seed: int = 0, geometry: Geometry = DECALS
) -> pa.Table:
    """Sidecar rows: alternating classes, three rows a region, θ_E and PSF FWHM for both classes."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 2
    theta = np.where(label == 1, rng.choice([0.6, 1.0, 1.5], rows), 0.0)
    number = {"train": 1, "val": 2, "test": 3}[split]
    ones = np.ones(rows, np.float32)
    columns: dict[str, Any] = {
        "key": [f"{number:x}{i:031x}" for i in range(rows)],
        "label": pa.array(label, pa.int8()),
        "task_id": [f"{split}-{i}" for i in range(rows)],
        "region_id": pa.array(number * 100_000 + np.arange(rows) // 3, pa.int32()),
        "lens_model": np.where(label == 1, "SIE", "CONTROL").tolist(),
        "theta_e_arcsec": pa.array(theta, pa.float64()),
        "psfsize_r": pa.array(rng.uniform(0.9, 1.6, rows), pa.float64()),
    }
    for band in geometry.bands:
        columns[f"median_{band}"] = ones * 0
        columns[f"scale_{band}"] = ones
        columns[f"clip_frac_{band}"] = ones * 0
    return pa.table(columns)


def tiny_dataset(
    tmp_path: Path,
    rows: int | Mapping[str, int] = 100,
    shard_rows: int = 32,
    *,
    seed: int = 0,
    name: str = "dataset",
    signal: bool = False,
    normalization: NormalizationSpec = SPEC,
    geometry: Geometry = DECALS,
) -> Path:
    """Write a small dataset and return its folder.

    Parameters
    ----------
    tmp_path : Path
    rows : int or mapping of str to int
        Rows of ``train``, or of each split.
    shard_rows : int
    seed : int
    name : str
        Folder below `tmp_path`.
    signal : bool
        Give the lenses a ring that a finder can learn.
    normalization : NormalizationSpec
    geometry : Geometry
        `PAIR` is one of another survey.
    """
    counts = {"train": rows} if isinstance(rows, int) else dict(rows)
    splits = {}
    for number, (split, count) in enumerate(counts.items()):
        table = tiny_table(count, split, seed + number, geometry)
        labels = table["label"].to_numpy() if signal else None
        splits[split] = (tiny_pixels(count, seed + number, labels, geometry), table)
    root = tmp_path / name
    write_dataset(root, splits, normalization, shard_rows=shard_rows, geometry=geometry)
    return root


def dataset_fixture(rows: int | Mapping[str, int], shard_rows: int = 32, **options: Any) -> Any:
    """A fixture for one module's tests, none of which writes into it: see `tiny_dataset`."""

    @pytest.fixture(scope="module")
    def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_dataset(tmp_path_factory.mktemp("data"), rows, shard_rows, **options)

    return root


def replace_sidecar(root: Path, name: str, content: pa.Table | bytes) -> None:
    """Replace a sidecar as a writer would who knows what the manifest must say of it."""
    if isinstance(content, pa.Table):
        sink = io.BytesIO()
        pq.write_table(content, sink, compression="zstd")
        content = sink.getvalue()
    (root / name).write_bytes(content)
    manifest = json.loads((root / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            if shard["sidecar"] == name:
                shard["sidecar_bytes"] = len(content)
                shard["sidecar_sha256"] = hashlib.sha256(content).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))


def put_folder(store: Store, folder: Path) -> None:
    """Write every file of a folder into a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())
