"""What a validation looks like in TensorBoard: PR curve, reliability, the hardest stamps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.special import expit
from torch.utils.tensorboard import summary

from lensprep.dataset import Dataset
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import read_statistics
from lenstrain.evaluation import calibration
from lenstrain.figures import draw_reliability, smaller
from lenstrain.training.board import annotate

HARDEST = 32
"""Stamps of each class that are shown."""
COLUMNS = 8
BINS = 15
STRIP = 13
"""Height of a line of text, pixels."""
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


def captioned(
    pictures: NDArray[np.uint8], texts: Sequence[str], title: str, columns: int = COLUMNS
) -> NDArray[np.uint8]:
    """As `montage`, with a line below each picture and one above all.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (n, H, W, 3)
    texts : sequence of str
        Of each picture; what is wider than a picture is cut off.
    title : str
    columns : int

    Returns
    -------
    ndarray of uint8, shape (lines * (H + `STRIP`) + `STRIP`, columns * W, 3)
    """
    width = pictures.shape[2]
    below = np.stack([_line(text, width) for text in texts])
    grid = montage(np.concatenate([pictures, below], axis=1), columns)
    return np.concatenate([_line(title, grid.shape[1]), grid])


def _line(text: str, width: int) -> NDArray[np.uint8]:
    """A line of white text on black, (`STRIP`, width, 3)."""
    image = Image.new("RGB", (width, STRIP))
    ImageDraw.Draw(image).text((2, 1), text, font=ImageFont.load_default(), fill="white")
    return np.asarray(image)


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


def reliability(
    logits: NDArray[np.float32], labels: NDArray[np.int8], region: NDArray[Any]
) -> dict[str, Any]:
    """Reliability of uncalibrated probabilities; see `calibration.reliability_table`."""
    p = expit(logits.astype(np.float64))
    bins = calibration.equal_mass_bins(p, BINS)
    number = np.unique(region, return_inverse=True)[1]
    sums = calibration.region_sums(p, labels, bins, BINS, number)
    return {**calibration.reliability_table(sums, LEVEL)}


def reliability_picture(table: dict[str, Any]) -> NDArray[np.uint8]:
    """Reliability diagram, (H, W, 3)."""
    figure = draw_reliability({"uncalibrated": table}, LEVEL).figure
    figure.set_dpi(130)
    canvas = FigureCanvasAgg(figure)  # draws without a display
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def show_validation(
    board: Any,
    step: int,
    epoch: int,
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
    step, epoch : int
        At the end of which it was; the epoch stands in the pictures.
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

    def show(made: Any, text: str) -> None:
        board.file_writer.add_summary(annotate(made, text), step)

    rated: Any = summary.pr_curve
    show(
        rated("validation/pr", labels, expit(logits.astype(np.float64))),
        "Precision against recall of the validation split, at the share of lenses in it.",
    )
    region = dataset.read_sidecar(split, ["region_id"])["region_id"].to_numpy()[rows]
    picture = reliability_picture(reliability(logits, labels, region))
    show(_image("validation/reliability", picture), _RELIABILITY)
    if dataset.manifest.normalization.by_stamp is None:
        return  # of a later version: it can be trained with, but not turned back to flux
    for label, name, words in (
        (1, "positives", "lenses with the lowest scores"),
        (0, "negatives", "non-lenses with the highest scores"),
    ):
        worst = hardest(logits, labels, label)
        pictures = stamp_pictures(dataset, split, rows[worst])
        texts = [f"{label}: {logit:.2f}" for logit in logits[worst]]
        title = f"{split}, epoch {epoch}: {words}, the worst first; below, label: logit"
        shown = captioned(pictures, texts, title)
        show(
            _image(f"validation/hardest_{name}", shown),
            f"The {HARDEST} {words} of the validation, the worst first. Below each stamp its label "
            "and its logit; 0 is a probability of one half.",
        )


_RELIABILITY = (
    "Share of lenses against mean probability, in bins of equal count, with 95 % intervals. On the "
    "diagonal a probability means what it says; these are not calibrated."
)


def _image(tag: str, picture: NDArray[np.uint8]) -> Any:
    made: Any = summary.image
    return made(tag, picture, dataformats="HWC")
