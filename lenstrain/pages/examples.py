"""Example stamps of the report: which ones, and their pictures from the dataset."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import image
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset import STAMP_SIZE, Dataset
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import STATISTICS, read_statistics
from lensprep.errors import ScoresError
from lensprep.store import local_folder
from lensprep.tables.reader import read_table
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import unique_rows
from lenstrain.scoring.table import SkyScores

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
    name: str = ""
    """What the object is called, if it has a name."""


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


class StampReader(Protocol):
    """Where the pictures of scored stamps come from."""

    note: str
    """How they were made."""

    def rgb(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Colour pictures of some rows of the scores, shape (n, 64, 64, 3)."""


def open_stamps(uri: str, scores: SkyScores) -> StampReader:
    """Open the place that the scores were made from.

    Raises
    ------
    DatasetError
        If it cannot be opened.
    ScoresError
        If the scores name another dataset.
    """
    source = scores.metadata.get("source")
    if isinstance(source, dict) and source.get("kind") in ("tree", "cutouts"):
        return SourceStamps(uri, str(source["kind"]), scores)
    return DatasetStamps(uri, scores)


class DatasetStamps:
    """Stamps of a converted dataset, found by split and key."""

    def __init__(self, uri: str, scores: SkyScores) -> None:
        self._scores = scores
        self._data = Dataset.open(uri)
        named = scores.metadata.get("dataset_id")
        if named and named != self._data.dataset_id:
            raise ScoresError(
                f"{scores.path} was scored on dataset {str(named)[:12]}, but {uri} is "
                f"{self._data.dataset_id[:12]}. Give --dataset the one that was scored."
            )
        spec = self._data.manifest.normalization
        self._scaled = spec.mode in _FLUX_MODES
        self.note = (
            "Lupton RGB (z, r, g) as in the Legacy Survey viewer; bright pixels stay clipped."
            if self._scaled
            else f"Stored pixels ({spec.mode}) between their percentiles; flux cannot be "
            "recovered from them."
        )

    def rgb(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures of some rows of the scores.

        Raises
        ------
        DatasetError
            If the dataset lacks a key, a split or a shard.
        """
        keys = [str(self._scores.table["key"][int(row)]) for row in rows]
        splits = np.array(self._splits(rows))
        pictures = np.zeros((len(rows), STAMP_SIZE, STAMP_SIZE, 3), np.uint8)
        for split in sorted(set(splits)):
            chosen = np.flatnonzero(splits == split)
            pictures[chosen] = self._pictures(str(split), [keys[k] for k in chosen])
        return pictures

    def _splits(self, rows: NDArray[np.int64]) -> list[str]:
        if "split" in self._scores.table.column_names:
            return [str(self._scores.table["split"][int(row)]) for row in rows]
        if "split" in self._scores.metadata:
            return [str(self._scores.metadata["split"])] * rows.size
        raise ScoresError(
            f"{self._scores.path} has no column split: no telling where its stamps lie."
        )

    def _pictures(self, split: str, keys: list[str]) -> NDArray[np.uint8]:
        wanted = ["key", *(STATISTICS if self._scaled else ())]
        sidecar = self._data.read_sidecar(split, wanted)
        index = pc.index_in(pa.array(keys, pa.string()), value_set=sidecar["key"].cast(pa.string()))
        if index.null_count:
            missing = keys[index.is_null().to_pylist().index(True)]
            raise ScoresError(
                f"{self._data.uri}: split {split} has no stamp {missing}; the scores belong to "
                "another dataset."
            )
        rows = index.to_numpy().astype(np.int64)
        pixels = self._data.read_pixels(split, rows).astype(np.float32)
        if not self._scaled:
            return _stretched(pixels)
        statistics = read_statistics(sidecar.take(pa.array(rows)))
        spec = self._data.manifest.normalization
        return lupton_rgb(denormalize(pixels, spec, *statistics))


class SourceStamps:
    """Stamps that were decoded on the way: a Phase 4c tree, or a folder of cutouts."""

    note = "Lupton RGB (z, r, g) as in the Legacy Survey viewer."
    _places = ("source_file", "source_row_group", "source_row")

    def __init__(self, uri: str, kind: str, scores: SkyScores) -> None:
        self._uri, self._kind, self._path = uri, kind, scores.path

    def rgb(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures of some rows of the scores.

        Raises
        ------
        InputError
            If the files are not there any more.
        ScoresError
            If the scores do not say where their stamps lie.
        """
        table = read_table(self._path, self._places).table
        missing = [name for name in self._places if name not in table.column_names]
        if missing:
            raise ScoresError(
                f"{self._path} has no column {missing[0]}: no telling where its stamps lie."
            )
        return lupton_rgb(self._pixels(table.take(pa.array(rows)).to_pylist()))

    def _pixels(self, places: list[dict[str, Any]]) -> NDArray[np.float32]:
        from lensprep.decode.parts import cutout_stamps, tree_stamps

        if self._kind == "tree":
            return tree_stamps(self._uri, places)
        names = [place["source_file"] for place in places]
        with local_folder(self._uri, wanted=names.__contains__) as folder:
            return cutout_stamps(folder, names)


def draw_gallery(reader: StampReader, scores: Scores, gallery: Gallery) -> list[Stamp]:
    """Read and draw the stamps of a gallery, in its order.

    Raises
    ------
    ProjectError
        If a stamp is not where it was when it was scored.
    """
    if not gallery.rows.size:
        return []
    facts = {name: scores.numbers(name) for name in _FACTS if scores.has(name)}
    return [
        Stamp(
            str(scores.table["key"][int(row)]),
            float(scores.logits[row]),
            float(special.expit(scores.logits[row])),
            png_uri(picture),
            {name: float(values[row]) for name, values in facts.items() if values[row] > 0},
        )
        for row, picture in zip(gallery.rows, reader.rgb(gallery.rows), strict=True)
    ]


def draw_missed(
    reader: StampReader, scores: SkyScores, lenses: Sequence[Mapping[str, Any]], size: int
) -> list[Stamp]:
    """Pictures of the known lenses that were missed, lowest score first; at most `size`."""
    lenses = lenses[:size]
    if not lenses:
        return []
    keys = pa.array([lens["key"] for lens in lenses], pa.string())
    rows = pc.index_in(keys, value_set=scores.table["key"].cast(pa.string())).to_numpy()
    return [
        Stamp(
            lens["key"],
            lens["logit"],
            float(special.expit(lens["logit"])),
            png_uri(picture),
            {},
            f"{lens['name']} ({lens['grade']})",
        )
        for lens, picture in zip(lenses, reader.rgb(rows.astype(np.int64)), strict=True)
    ]


def _stretched(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stored pixels between their percentiles, where flux cannot be recovered from them."""
    low, high = np.percentile(pixels, [1, 99.5], axis=(-2, -1), keepdims=True)
    share = np.clip((pixels - low) / np.maximum(high - low, 1e-6), 0, 1)
    return np.rint(255 * np.moveaxis(share[:, ::-1], 1, -1)).astype(np.uint8)


def png_uri(picture: NDArray[np.uint8]) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    image.imsave(buffer, picture, format="png")
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a data URI, so that the page needs nothing beside it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
