"""Pictures of stamps: both classes side by side, with label, theta_E and key under each.

    write_montage(location, "stamps.png", count=48, seed=0)      of a dataset, a shard, a tar, or of
                                                                 a Phase 4c source
    draw_montage(stamps) -> matplotlib figure                    of stamps that are at hand

Colours are those of the Legacy Survey viewer (Lupton et al. 2004), from nanomaggies: what the
normalisation did is undone, but for what it clipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset.layout import MANIFEST_NAME, STAMP_SHAPE
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import STATISTICS, read_statistics
from lensprep.errors import DatasetError
from lensprep.inspection.target import Part, Target, open_target, table_numbers
from lensprep.source.contract import filter_rows, label_rows
from lensprep.source.listing import filesystem_for
from lensprep.source.tree import Source
from lensprep.store import S3Options, is_remote, local_path, open_store, uri_suffix, written_file

_COLUMNS: Final = 4
"""Stamps beside each other in each half of the picture."""
_INCHES: Final = 1.55
_DPI: Final = 110
_TITLES: Final = ("non-lenses", "lenses")
_SOURCE_COLUMNS: Final = (
    "task_id",
    "bandset",
    "cutout_ok",
    "is_control",
    "theta_e_arcsec",
    "lens_model",
    "stamp_npz",
    "region_split",
)
_MOST_PARTS: Final = 16
"""Shards or row groups that are looked into for stamps; each holds many."""
_SPREAD: Final = 4
"""A source's rows are not shuffled: its stamps are taken from about so many row groups."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MontageStamp:
    """One stamp to draw."""

    pixels: NDArray[np.float32]
    """Nanomaggies, shape (3, 64, 64)."""
    label: int
    theta_e_arcsec: float
    key: str
    """Key of the record, or the task_id of a source's row."""


def write_montage(
    location: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    count: int = 48,
    seed: int = 0,
    options: S3Options | None = None,
) -> list[str]:
    """Draw a random sample of stamps into a picture.

    Parameters
    ----------
    location : str, path or Source
        A dataset, one of its shards, a tar alone, or a Phase 4c source (a folder without a
        manifest).
    out : str or path
        The picture, local or s3://; its suffix says how it is drawn (png, jpg, pdf). It is written
        whole or not at all.
    split : str, optional
        Only this split; else the first one of a dataset, any of a source.
    count : int
        Stamps, half of them of each class where there are as many.
    seed : int
        Another seed, other stamps.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    list of str
        Keys of the stamps drawn, as in the picture: first all non-lenses, then all lenses.

    Raises
    ------
    InputError, DatasetError, ShardError
        If the location cannot be read or has no stamp to draw.
    """
    rng = np.random.default_rng(seed)
    if isinstance(location, Source):
        stamps = _from_source(location, split, count, rng)
    elif _is_source(location, options):
        source = Source.open(location, filesystem=filesystem_for(location, options))
        stamps = _from_source(source, split, count, rng)
    else:
        stamps = _from_dataset(open_target(location, split, options), count, rng)
    if not stamps:
        raise DatasetError(f"{location} has no stamp to draw.")
    figure = draw_montage(stamps)
    with written_file(out, options) as path:
        figure.savefig(path, format=uri_suffix(out)[1:] or None, dpi=_DPI)
    return [stamp.key for label in (0, 1) for stamp in stamps if stamp.label == label]


def draw_montage(stamps: Sequence[MontageStamp]) -> Any:
    """Stamps as a figure: non-lenses on the left, lenses on the right.

    Parameters
    ----------
    stamps : sequence of MontageStamp

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure  # slow to import; no backend or window is involved

    groups = [[stamp for stamp in stamps if stamp.label == label] for label in (0, 1)]
    rows = max(-(-len(group) // _COLUMNS) for group in groups)
    size = (2 * _COLUMNS * _INCHES + 0.5, rows * (_INCHES + 0.42) + 0.4)
    figure = Figure(figsize=size, layout=None, facecolor="white")
    width, gap = (1 - 0.03) / (2 * _COLUMNS), 0.03
    top, height = 1 - 0.4 / size[1], (_INCHES + 0.42) / size[1]
    for half, group in enumerate(groups):
        left = half * (_COLUMNS * width + gap)
        title = f"{_TITLES[half]} ({len(group)})"
        figure.text(left + _COLUMNS * width / 2, 1 - 0.2 / size[1], title, ha="center", va="center")
        for number, stamp in enumerate(group):
            row, column = divmod(number, _COLUMNS)
            box = (
                left + (column + 0.03) * width,
                top - row * height - 0.94 * _INCHES / size[1],
                0.94 * width,
                0.94 * _INCHES / size[1],
            )
            _draw_stamp(figure.add_axes(box), stamp)
    return figure


def _draw_stamp(axes: Any, stamp: MontageStamp) -> None:
    """One stamp, its first row at the bottom, as FITS images are shown."""
    axes.imshow(lupton_rgb(stamp.pixels), origin="lower", interpolation="nearest")
    axes.set_axis_off()
    label = f"{stamp.label}"
    if stamp.label == 1:
        label += f"   θ_E {stamp.theta_e_arcsec:.2f}″"
    axes.text(0.5, -0.03, f"label {label}", transform=axes.transAxes, ha="center", va="top", size=7)
    half = (len(stamp.key) + 1) // 2 if len(stamp.key) <= 32 else 16
    axes.text(
        0.5,
        -0.13,
        f"{stamp.key[:half]}\n{stamp.key[half:32]}",
        transform=axes.transAxes,
        ha="center",
        va="top",
        size=5,
        family="monospace",
        linespacing=1.15,
    )


def _is_source(location: str | os.PathLike[str], options: S3Options | None) -> bool:
    """Whether a location is a folder without a manifest."""
    if not is_remote(location) and not local_path(location).is_dir():
        return False
    return not str(location).endswith(".tar") and not open_store(location, options).has(
        MANIFEST_NAME
    )


def _from_dataset(target: Target, count: int, rng: np.random.Generator) -> list[MontageStamp]:
    """A sample of the first shards, which are random samples of their split themselves."""
    stamps: list[MontageStamp] = []
    for part in islice(target.parts(target.splits[0]), _MOST_PARTS):
        label = table_numbers(part.sidecar, "label")[0].astype(int)
        rows = _missing_rows(stamps, label, count, rng)
        stamps.extend(_dataset_stamps(part, rows, target.dataset))
        if len(stamps) >= count:
            break
    return stamps


def _dataset_stamps(part: Part, rows: NDArray[np.intp], dataset: Any) -> Iterator[MontageStamp]:
    table = part.sidecar.take(pa.array(rows))
    if not {*STATISTICS} <= {*table.column_names}:
        raise DatasetError(
            f"{part.name} has no sidecar with {STATISTICS[0]}: without it the stored pixels cannot "
            "be turned back to nanomaggies. Keep the .parquet beside the .tar."
        )
    if dataset is None:
        raise DatasetError(
            f"{part.name} has no manifest, so its normalisation is unknown. Name the dataset."
        )
    pixels = dataset.read_shard_pixels(part.shard, rows)
    flux = denormalize(pixels, dataset.manifest.normalization, *read_statistics(table))
    for number, row in enumerate(table.to_pylist()):
        yield MontageStamp(
            pixels=flux[number],
            label=int(row["label"]),
            theta_e_arcsec=float(row.get("theta_e_arcsec") or 0.0),
            key=str(row["key"]),
        )


def _from_source(
    source: Source, split: str | None, count: int, rng: np.random.Generator
) -> list[MontageStamp]:
    """A sample of some row groups; rows that conversion would leave out are passed over."""
    groups = [
        (file, index)
        for file in source.files
        if split is None or file.split in (split, None)
        for index in range(len(file.row_groups))
    ]
    stamps: list[MontageStamp] = []
    for number in rng.permutation(len(groups))[:_MOST_PARTS].tolist():
        file, index = groups[number]
        table = source.read_row_group(file, index, _SOURCE_COLUMNS)
        label = label_rows(table).label.astype(int)
        label[filter_rows(table) != ""] = -1
        if split is not None:
            label[np.array(table["region_split"].to_pylist(), object) != split] = -1
        rows = _missing_rows(stamps, label, count, rng, share=_SPREAD)
        stamps.extend(_source_stamps(table.take(pa.array(rows)), label[rows]))
        if len(stamps) >= count:
            break
    return stamps


def _source_stamps(table: pa.Table, label: NDArray[np.int_]) -> Iterator[MontageStamp]:
    from lensprep.decode.stampnpz import decode_batch  # compiles kernels: only where blobs are read

    pixels = np.empty((table.num_rows, *STAMP_SHAPE), np.float32)
    reasons = decode_batch(table["stamp_npz"], pixels)
    for number, row in enumerate(table.drop_columns(["stamp_npz"]).to_pylist()):
        if reasons[number] is None:
            yield MontageStamp(
                pixels=pixels[number],
                label=int(label[number]),
                theta_e_arcsec=row["theta_e_arcsec"],
                key=row["task_id"],
            )


def _missing_rows(
    have: Sequence[MontageStamp],
    label: NDArray[np.int_],
    count: int,
    rng: np.random.Generator,
    *,
    share: int = 1,
) -> NDArray[np.intp]:
    """Rows to add, at random: half of ``count`` of each class in all, a ``share``-th of it here."""
    chosen = []
    for wanted, quota in ((0, -(-count // 2)), (1, count // 2)):
        missing = quota - sum(stamp.label == wanted for stamp in have)
        rows = rng.permutation(np.flatnonzero(label == wanted))
        chosen.append(rows[: max(0, min(missing, -(-quota // share)))])
    return np.sort(np.concatenate(chosen))
