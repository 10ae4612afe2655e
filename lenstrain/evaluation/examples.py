"""Example stamps of the report: which ones, and their pictures from the dataset."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import image
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset import BANDS, Dataset
from lensprep.dataset.rgb import denormalize, lupton_rgb
from lensprep.errors import ScoresError
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import unique_rows

_FLUX_MODES = ("mad_stamp", "mad_annulus")
_FACTS = ("theta_e_arcsec", "psfsize_r", "arc_snr")


@dataclass(frozen=True)
class Gallery:
    """Rows of the scores to show together."""

    name: str
    title: str
    caption: str
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Stamp:
    """One picture of the report."""

    key: str
    logit: float
    probability: float
    source: str
    """PNG as a data URI."""
    facts: dict[str, float]


def choose_galleries(scores: Scores, size: int) -> list[Gallery]:
    """Highest non-lenses, lowest lenses and highest lenses; every image once."""
    identity = scores.identity
    falling = scores.order
    rank = falling[::-1]

    def pick(order: NDArray[np.int64], label: int) -> NDArray[np.int64]:
        # Enough of the order to find `size` images even if each comes 24 times.
        candidates = order[scores.labels[order] == label][: 32 * size]
        return candidates[unique_rows(identity[candidates])][:size]

    return [
        Gallery(
            "false_positives",
            "Highest-scored non-lenses",
            "What the finder mistakes for lenses: the first things an inspector would see.",
            pick(falling, 0),
        ),
        Gallery(
            "missed",
            "Lowest-scored lenses",
            "What it misses. Most should be faint or smaller than the seeing.",
            pick(rank, 1),
        ),
        Gallery(
            "true_positives",
            "Highest-scored lenses",
            "What it is surest of. Arcs should be plain to see; if they are not, look for a leak.",
            pick(falling, 1),
        ),
    ]


def open_dataset(uri: str, scores: Scores) -> Dataset:
    """Open the dataset that the scores were made from.

    Raises
    ------
    DatasetError
        If it cannot be opened.
    ScoresError
        If the scores name another dataset.
    """
    dataset = Dataset.open(uri)
    named = scores.metadata.get("dataset_id")
    if named and named != dataset.dataset_id:
        raise ScoresError(
            f"{scores.path} was scored on dataset {str(named)[:12]}, but {uri} is "
            f"{dataset.dataset_id[:12]}. Give --dataset the one that was scored."
        )
    return dataset


def draw_gallery(dataset: Dataset, scores: Scores, gallery: Gallery) -> list[Stamp]:
    """Read and draw the stamps of a gallery, in its order.

    Raises
    ------
    DatasetError
        If the dataset lacks a key, a split or a shard.
    """
    keys = [str(scores.table["key"][int(row)]) for row in gallery.rows]
    splits = _splits(scores, gallery.rows)
    pictures: dict[str, str] = {}
    for split in sorted(set(splits)):
        chosen = [key for key, its in zip(keys, splits, strict=True) if its == split]
        pictures |= _pictures(dataset, split, chosen)
    facts = {name: scores.numbers(name) for name in _FACTS if scores.has(name)}
    return [
        Stamp(
            key,
            float(scores.logits[row]),
            float(special.expit(scores.logits[row])),
            pictures[key],
            {name: float(values[row]) for name, values in facts.items() if values[row] > 0},
        )
        for key, row in zip(keys, gallery.rows, strict=True)
    ]


def _splits(scores: Scores, rows: NDArray[np.int64]) -> list[str]:
    if scores.has("split"):
        return [str(scores.table["split"][int(row)]) for row in rows]
    if "split" in scores.metadata:
        return [str(scores.metadata["split"])] * rows.size
    raise ScoresError(f"{scores.path} has no column split: no telling where its stamps lie.")


def _pictures(dataset: Dataset, split: str, keys: list[str]) -> dict[str, str]:
    """PNG data URIs of some keys of a split."""
    scaled = dataset.manifest.normalization.mode in _FLUX_MODES
    statistics = [f"{what}_{band}" for what in ("median", "scale") for band in BANDS]
    sidecar = dataset.read_sidecar(split, ["key", *(statistics if scaled else ())])
    index = pc.index_in(pa.array(keys, pa.string()), value_set=sidecar["key"].cast(pa.string()))
    if index.null_count:
        missing = keys[index.is_null().to_pylist().index(True)]
        raise ScoresError(
            f"{dataset.uri}: split {split} has no stamp {missing}; the scores belong to another "
            "dataset."
        )
    rows = index.to_numpy().astype(np.int64)
    pixels = dataset.read_pixels(split, rows).astype(np.float32)
    if scaled:
        chosen = sidecar.select(statistics).take(pa.array(rows))
        numbers = np.stack([chosen[name].to_numpy() for name in statistics], axis=-1)
        rgb = lupton_rgb(denormalize(pixels, numbers[:, :3], numbers[:, 3:]))
    else:
        rgb = _stretched(pixels)
    return {key: _png_uri(picture) for key, picture in zip(keys, rgb, strict=True)}


def _stretched(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stored pixels between their percentiles, where flux cannot be recovered from them."""
    low, high = np.percentile(pixels, [1, 99.5], axis=(-2, -1), keepdims=True)
    share = np.clip((pixels - low) / np.maximum(high - low, 1e-6), 0, 1)
    return np.rint(255 * np.moveaxis(share[:, ::-1], 1, -1)).astype(np.uint8)


def _png_uri(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    image.imsave(buffer, picture, format="png")
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a data URI, so that the page needs nothing beside it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def stretch_note(dataset: Dataset) -> str:
    """How the pictures were made."""
    mode: Any = dataset.manifest.normalization.mode
    if mode in _FLUX_MODES:
        return "Lupton RGB (z, r, g) as in the Legacy Survey viewer; bright pixels stay clipped."
    return f"Stored pixels ({mode}) between their percentiles; flux cannot be recovered from them."
