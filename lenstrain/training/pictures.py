"""What a validation looks like in TensorBoard: PR curve, reliability, the hardest stamps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from scipy.special import expit

from lensprep.dataset import Dataset
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import read_statistics
from lenstrain.evaluation import calibration
from lenstrain.figures import draw_reliability, smaller

HARDEST = 32
"""Stamps of each class that are shown."""
COLUMNS = 8
BINS = 15
LEVEL = 0.95


def hardest(
    logits: NDArray[np.float32], labels: NDArray[np.int8], label: int, count: int = HARDEST
) -> NDArray[np.int64]:
    """Rows of a class that are scored most wrongly, the worst first; ties by row.

    Parameters
    ----------
    logits : ndarray of float32, shape (rows,)
    labels : ndarray of int8, shape (rows,)
    label : {0, 1}
    count : int
        At most so many.
    """
    rows = np.flatnonzero(labels == label)
    wrongness = logits[rows] if label else -logits[rows]
    return rows[np.argsort(wrongness, kind="stable")[:count]]


def montage(pictures: NDArray[np.uint8], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Lay pictures (n, H, W, 3) out in rows of `columns`, the first at the upper left."""
    count, height, width, _ = pictures.shape
    lines = -(-count // columns)
    grid = np.zeros((lines * columns, height, width, 3), np.uint8)
    grid[:count] = pictures
    grid = grid.reshape(lines, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(lines * height, columns * width, 3)


def stamp_pictures(dataset: Dataset, split: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Colour pictures (n, S, S, 3) of rows of a split, in the order of `rows`; see `smaller`."""
    manifest = dataset.manifest
    pixels = dataset.read_pixels(split, rows)
    statistics = stamp_statistics(dataset, split, rows)
    flux = denormalize(pixels, manifest.normalization, *statistics)
    return smaller(lupton_rgb(flux, manifest.geometry))


def stamp_statistics(dataset: Dataset, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Median and scale of each band of some rows, from their shards only; (2, rows, bands)."""
    geometry = dataset.manifest.geometry
    columns = geometry.band_columns("median", "scale")
    found = np.empty((2, len(rows), len(geometry.bands)), np.float32)
    start = 0
    for shard in dataset.split(split).shards:
        here = np.flatnonzero((rows >= start) & (rows < start + shard.rows))
        if here.size:
            table = dataset.read_shard_sidecar(shard, columns)
            table = table.take(pa.array(rows[here] - start))
            found[:, here] = read_statistics(table, geometry)
        start += shard.rows
    return found


def reliability_picture(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Reliability diagram of uncalibrated probabilities, (H, W, 3)."""
    p = expit(logits.astype(np.float64))
    bins = calibration.equal_mass_bins(p, BINS)
    sums = calibration.bin_sums(p, labels, bins, BINS)
    table: Any = calibration.reliability_table(sums, LEVEL)
    figure = draw_reliability({"uncalibrated": table}, LEVEL).figure
    figure.set_dpi(130)
    canvas = FigureCanvasAgg(figure)  # draws without a display
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def show_validation(
    board: Any,
    step: int,
    dataset: Dataset,
    split: str,
    logits: NDArray[np.float32],
    labels: NDArray[np.int8],
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Write a validation's pictures to TensorBoard; nothing if a logit is not finite.

    Parameters
    ----------
    board : SummaryWriter
    step : int
    dataset : Dataset
    split : str
        The split that was validated on.
    logits : ndarray of float32, shape (rows,)
        In split order.
    labels : ndarray of int8, shape (rows,)
    rows : ndarray of int64, optional
        Those that are shown: all if not given, the ordinary ones of a split with counterfactuals.
    """
    if not np.isfinite(logits).all():
        return
    rows = np.arange(len(logits)) if rows is None else rows
    logits, labels = logits[rows], labels[rows]
    board.add_pr_curve("validation/pr", labels, expit(logits.astype(np.float64)), step)
    picture = reliability_picture(logits, labels)
    board.add_image("validation/reliability", picture, step, dataformats="HWC")
    if dataset.manifest.normalization.by_stamp is None:
        return  # of a later version: it can be trained with, but not turned back to flux
    for label, name in ((1, "positives"), (0, "negatives")):
        pictures = stamp_pictures(dataset, split, rows[hardest(logits, labels, label)])
        tag = f"validation/hardest_{name}"
        board.add_image(tag, montage(pictures), step, dataformats="HWC")
