"""Small Phase 4c trees for tests: all 57 columns with their types and null rules, in milliseconds.

root = tiny_tree(tmp_path, rows=60)                      a Hive tree of random-noise stamps
root = tiny_tree(tmp_path, 60, theta_e_arcsec=[...])     with columns replaced
table = tiny_table(60)                                   the rows alone
blob = stamp_blob(pixels)                                (3, 64, 64) -> stamp_npz
table = tiny_counterfactuals(tiny_table(60))             counterfactuals of these rows
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.source.survey import COLUMN_BY_NAME, COLUMNS, FAMILY_COLUMNS, SCHEMA

BANDS = ("g", "r", "z")
SPLITS = ("train", "val", "test")


def stamp_blob(pixels: np.ndarray, bands: Sequence[str] = BANDS) -> bytes:
    """What upstream stores for a stamp: ``np.savez_compressed`` of ``image_g``, ``_r``, ``_z``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"image_{b}": p for b, p in zip(bands, pixels, strict=True)})
    return buffer.getvalue()


def tiny_pixels(rows: int, seed: int = 0) -> np.ndarray:
    """Noise with a faint blob in the middle, nanomaggies; float32, shape (rows, 3, 64, 64)."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0.0, 0.01, (rows, 3, 64, 64))
    y, x = np.mgrid[:64, :64] - 31.5
    galaxy = np.exp(-(x**2 + y**2) / 40.0)
    flux = rng.uniform(0.05, 0.5, (rows, 1, 1, 1)) * np.array([0.4, 1.0, 1.8])[:, None, None]
    return (pixels + flux * galaxy).astype(np.float32)


def tiny_table(rows: int, *, seed: int = 0, regions: int = 12, **columns: Any) -> pa.Table:
    """Rows that keep the contract.

    Every other row is a control; regions go in turn to train, train, val, test and lie degrees
    apart on the sky; every row is a galaxy of its own.

    Parameters
    ----------
    rows : int
    seed : int
        Seed of pixels and properties.
    regions : int
        Number of regions.
    **columns
        Replacements: a value for all rows, a sequence of one value a row, or a function of the
        row number.
    """
    rng = np.random.default_rng(seed)
    number = np.arange(rows)
    control = number % 2 == 0
    region = (number // 2) % regions
    split = np.array(["train", "train", "val", "test"])[region % 4]
    theta_e = np.where(control, 0.0, rng.choice([0.3, 0.6, 1.0], rows))
    psf = rng.uniform(0.9, 1.5, rows)
    values: dict[str, Any] = {
        "task_id": [hashlib.sha256(f"{seed}/{i}".encode()).hexdigest() for i in range(rows)],
        "experiment_id": "tiny",
        "selection_set_id": "set0",
        "ranking_mode": "score",
        "selection_strategy": "grid",
        "brickname": [f"{r:04d}p{(i // 2) % 7:03d}" for i, r in enumerate(region)],
        "bandset": "grz",
        "config_id": np.where(control, "control", "grid_small").tolist(),
        "region_split": split.tolist(),
        "region_id": region,
        "stamp_size": 64,
        "replicate": 0,
        "is_control": control.astype(int),
        "cutout_ok": 1,
        "metrics_only": 0,
        "ra": 10.0 + 3.0 * region + rng.uniform(0, 1, rows),
        "dec": rng.uniform(-20, 20, rows),
        "theta_e_arcsec": theta_e,
        "src_dmag": rng.choice([1.0, 2.0], rows),
        "src_reff_arcsec": rng.choice([0.08, 0.15], rows),
        "src_e": rng.choice([0.0, 0.3], rows),
        "shear": rng.choice([0.0, 0.03], rows),
        "src_gr": rng.uniform(-0.5, 1.5, rows),
        "src_rz": rng.uniform(-0.5, 1.5, rows),
        "psf_bin": (number // 2) % 4,
        "depth_bin": (number // 8) % 4,
        "ab_zp_nmgy": 22.5,
        "pipeline_version": "phase4_pipeline_v1",
        "psfsize_r": psf,
        "psfdepth_r": rng.uniform(23.6, 26.8, rows),
        "ebv": rng.uniform(0.0, 0.2, rows),
        "stamp_npz": [stamp_blob(p) for p in tiny_pixels(rows, seed)],
        "arc_snr": rng.uniform(1, 50, rows),
        "magnification": rng.uniform(1.5, 10, rows),
        "bad_pixel_frac": rng.uniform(0, 0.15, rows),
        "wise_brightmask_frac": 0.0,
        "metrics_ok": 1,
        "psf_fwhm_used_g": psf * 1.1,
        "psf_fwhm_used_r": psf,
        "psf_fwhm_used_z": psf,
        "lens_model": np.where(control, "CONTROL", "SIE").tolist(),
        "physics_valid": 1,
        "physics_warnings": "",
    }
    if unknown := set(columns) - set(COLUMN_BY_NAME):
        raise TypeError(f"not columns of Phase 4c: {sorted(unknown)}")
    arrays = []
    for column in COLUMNS:
        if column.name in columns:
            arrays.append(_array(columns[column.name], rows, column.type))
            continue
        value = values.get(column.name, _any_values(rows, column.type, rng))
        arrays.append(_control_rule(_array(value, rows, column.type), column.controls, control))
    return pa.Table.from_arrays(arrays, schema=pa.schema([f.with_nullable(True) for f in SCHEMA]))


def tiny_counterfactuals(
    table: pa.Table, kinds: Sequence[str] = ("unlensed", "lensed"), pairs: int | None = None
) -> pa.Table:
    """Counterfactuals of a `tiny_table`: each control is host to the light of the lens after it.

    Parameters
    ----------
    table : pyarrow.Table
    kinds : sequence of str
    pairs : int, optional
        Hosts to use, from the first; all if not given.
    """
    rows = table.to_pylist()
    made = []
    for host, donor in zip(rows[: 2 * pairs if pairs else None : 2], rows[1::2], strict=False):
        injected = {c.name: donor[c.name] for c in COLUMNS if c.controls != "value"}
        lens = {**injected, "is_control": 0, "lens_model": donor["lens_model"]}
        for kind in kinds:
            name = f"{kind}/{host['task_id']}"
            (pixels,) = tiny_pixels(1, seed=int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
            made.append({
                **host,
                **(lens if kind == "lensed" else {}),
                "task_id": hashlib.sha256(name.encode()).hexdigest(),
                "stamp_npz": stamp_blob(pixels),
                "counterfactual": kind,
                "host_task_id": host["task_id"],
                "donor_task_id": donor["task_id"],
            })  # fmt: skip
    family = [pa.field(column.name, column.type) for column in FAMILY_COLUMNS]
    return pa.Table.from_pylist(made, pa.schema([*table.schema, *family]))


def tiny_tree(
    folder: Path,
    rows: int = 60,
    *,
    hive: bool = True,
    files_per_split: int = 2,
    row_group_rows: int = 8,
    change: Callable[[pa.Table, str], pa.Table] | None = None,
    **columns: Any,
) -> Path:
    """Write a Phase 4c tree below ``folder`` and return its root.

    Parameters
    ----------
    folder : Path
    rows : int
    hive : bool
        Put the split into folders ``region_split=...`` and leave it out of the files; else a flat
        tree with the column.
    files_per_split : int
    row_group_rows : int
    change : function of (table, file path), optional
        Last change to a file's table, such as dropping a column.
    **columns
        As `tiny_table` takes them (also ``seed`` and ``regions``).
    """
    return write_tree(
        folder / "stamps",
        tiny_table(rows, **columns),
        hive=hive,
        files_per_split=files_per_split,
        row_group_rows=row_group_rows,
        change=change,
    )


def write_tree(
    root: Path,
    table: pa.Table,
    *,
    hive: bool = True,
    files_per_split: int = 2,
    row_group_rows: int = 8,
    change: Callable[[pa.Table, str], pa.Table] | None = None,
    page_checksums: bool = False,
) -> Path:
    """Write rows as a Phase 4c tree; see `tiny_tree`."""
    splits = np.array(table.column("region_split").to_pylist(), object)
    names = sorted({str(name) for name in splits}) if hive else ["all"]
    for split in names:
        part = table.take(pa.array(np.flatnonzero(splits.astype(str) == split))) if hive else table
        part = part.drop_columns(["region_split"]) if hive else part
        for number, rows in enumerate(np.array_split(np.arange(part.num_rows), files_per_split)):
            name = f"part-{number:05d}-8d5c0c7e.c000.snappy.parquet"
            name = f"region_split={split}/{name}" if hive else name
            chosen = part.take(pa.array(rows))
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                change(chosen, name) if change else chosen,
                path,
                row_group_size=row_group_rows,
                compression="snappy",
                # As Spark: no dictionary of blobs, and pages of a megabyte or two.
                use_dictionary=[c for c in chosen.column_names if c != "stamp_npz"],
                write_batch_size=32,
                write_page_checksum=page_checksums,
            )
    (root / "_SUCCESS").touch()
    return root


def set_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """The table with columns replaced by sequences, in the contract's types."""
    for name, values in columns.items():
        index = table.column_names.index(name)
        array = pa.array(values, COLUMN_BY_NAME[name].type)
        table = table.set_column(index, table.schema.field(index).with_nullable(True), array)
    return table


def _any_values(rows: int, data_type: pa.DataType, rng: np.random.Generator) -> np.ndarray:
    if pa.types.is_integer(data_type):
        return rng.integers(0, 2, rows)
    return rng.uniform(0.1, 1.0, rows)


def _array(given: Any, rows: int, data_type: pa.DataType) -> pa.Array:
    if callable(given):
        given = [given(i) for i in range(rows)]
    if given is None or isinstance(given, str | bytes | int | float):
        given = [given] * rows
    if isinstance(given, np.ndarray):
        given = given.tolist()
    return pa.array(given, data_type)


def _control_rule(array: pa.Array, rule: str, control: np.ndarray) -> pa.Array:
    """What controls hold: zero, null, or a value like any other row."""
    if rule == "value":
        return array
    held = None if rule == "null" else 0
    values = [
        held if is_control else value
        for value, is_control in zip(array.to_pylist(), control.tolist(), strict=True)
    ]
    return pa.array(values, array.type)
