"""Example stamps of the report: which ones, and their pictures from where they were scored."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import image
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset import DECALS, Dataset, Geometry
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.sidecar import read_statistics
from lensprep.errors import ScoresError
from lensprep.store import local_folder
from lensprep.tables.reader import read_table
from lenstrain.evaluation.scores import Scores
from lenstrain.evaluation.threshold import unique_rows
from lenstrain.figures import smaller
from lenstrain.scoretable import SkyScores, scored_geometry

_FACTS = ("ra", "dec", "theta_e_arcsec", "psfsize_r", "arc_snr")
_VIEWERS = {
    DECALS.survey: "https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&layer=ls-dr10&zoom=16"
}
"""Viewers of surveys, by the names of these."""
_ORIGIN = ("source_file", "source_row_group", "source_row")

Rows = NDArray[np.int64]
Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Stamp:
    """One picture of the report."""

    key: str
    logit: float
    source: str
    """PNG as a data URI."""
    label: int
    facts: dict[str, float]
    """What is known of it, by column."""
    viewer: str | None
    """Address of the same place in the viewer of its survey, if that is known."""
    name: str = ""
    """What the object is called, if it has a name."""

    @property
    def score(self) -> float:
        """Sigmoid of the logit."""
        return float(special.expit(self.logit))


@dataclass(frozen=True)
class Gallery:
    """Stamps that are shown together."""

    title: str
    caption: str
    stamps: Sequence[Stamp]


@dataclass(frozen=True)
class StampReader:
    """Where the pictures of scored stamps come from."""

    note: str
    """How they were made, and how wide they are."""
    geometry: Geometry
    rgb: Callable[[Rows], Pictures]
    """Colour pictures of some rows of the scores, shape (n, S, S, 3).

    Raises `ProjectError` if a stamp is not where it was when it was scored.
    """


def open_stamps(uri: str, scores: SkyScores) -> StampReader:
    """Open the dataset, tree or folder of cutouts that the scores were made from.

    Raises
    ------
    DatasetError
        If it cannot be opened.
    ScoresError
        If the scores name another dataset.
    """
    source = scores.metadata.get("source")
    if isinstance(source, dict) and source.get("kind") in ("tree", "cutouts"):
        geometry = scored_geometry(scores.metadata)
        note = f"{_stretch(geometry)}. {_width(geometry)}"
        return StampReader(note, geometry, partial(_source_rgb, uri, source, scores, geometry))
    data = Dataset.open(uri)
    named = scores.metadata.get("dataset_id")
    if named and named != data.dataset_id:
        raise ScoresError(
            f"{scores.path} was scored on dataset {str(named)[:12]}, but {uri} is "
            f"{data.dataset_id[:12]}. Give --dataset the one that was scored."
        )
    geometry = data.manifest.geometry
    note = f"{_stretch(geometry)}; what was clipped when it was stored stays clipped."
    if not all(_keeps_flux(data, split) for split in data.manifest.splits):
        mode = data.manifest.normalization.mode
        note = f"Stored pixels ({mode}) between their percentiles; their flux cannot be recovered."
    return StampReader(f"{note} {_width(geometry)}", geometry, partial(_dataset_rgb, data, scores))


def _stretch(geometry: Geometry) -> str:
    """How flux is drawn, in words."""
    if geometry == DECALS:
        return "Lupton RGB (z, r, g) as in the Legacy Survey viewer"
    bands = geometry.bands
    if len(bands) == 1:
        return f"Lupton stretch of {bands[0]}"
    middle = "+".join(dict.fromkeys((bands[(len(bands) - 1) // 2], bands[len(bands) // 2])))
    return f"Lupton RGB ({bands[-1]}, {middle}, {bands[0]})"


def _width(geometry: Geometry) -> str:
    return f"Each stamp is {geometry.side_arcsec:.1f}″ wide."


def _keeps_flux(data: Dataset, split: str) -> bool:
    """Whether flux can be restored: the mode is known, and so is what it divided by."""
    by_stamp = data.manifest.normalization.by_stamp
    return by_stamp is False or (
        by_stamp is True and {*_statistics(data)} <= {*data.columns(split)}
    )


def _statistics(data: Dataset) -> tuple[str, ...]:
    return data.manifest.geometry.band_columns("median", "scale")


def _dataset_rgb(data: Dataset, scores: SkyScores, rows: Rows) -> Pictures:
    """Pictures of stamps of a converted dataset, found by split and key."""
    table = scores.table.take(pa.array(rows))
    if "split" in table.column_names:
        splits = np.array([str(split) for split in table["split"].to_pylist()])
    elif "split" in scores.metadata:
        splits = np.full(rows.size, str(scores.metadata["split"]))
    else:
        raise ScoresError(f"{scores.path} has no column split, so its stamps cannot be found.")
    keys = table["key"].cast(pa.string())
    side = data.manifest.geometry.side
    pictures = np.zeros((rows.size, side, side, 3), np.uint8)
    for split in np.unique(splits).tolist():
        chosen = np.flatnonzero(splits == split)
        pictures[chosen] = _split_rgb(data, split, keys.take(pa.array(chosen)))
    return pictures


def _split_rgb(data: Dataset, split: str, keys: pa.ChunkedArray) -> Pictures:
    spec, keeps_flux = data.manifest.normalization, _keeps_flux(data, split)
    needed = _statistics(data) if keeps_flux and spec.by_stamp else ()
    sidecar = data.read_sidecar(split, ["key", *needed])
    index = pc.index_in(keys, value_set=sidecar["key"].cast(pa.string()))
    if index.null_count:
        raise ScoresError(
            f"{data.uri}: split {split} has no stamp {keys.filter(index.is_null())[0]}; the scores "
            "belong to another dataset."
        )
    rows = index.to_numpy().astype(np.int64)
    pixels = data.read_pixels(split, rows).astype(np.float32)
    if not keeps_flux:
        return _stretched(pixels)
    geometry = data.manifest.geometry
    chosen = sidecar.take(pa.array(rows))
    median, scale = read_statistics(chosen, geometry) if needed else (0.0, 1.0)
    return lupton_rgb(denormalize(pixels, spec, median, scale), geometry)


def _source_rgb(
    uri: str, source: dict[str, Any], scores: SkyScores, geometry: Geometry, rows: Rows
) -> Pictures:
    """Pictures of stamps that were decoded while they were scored."""
    from lensprep.decode.parts import cutout_files, cutout_stamps, tree_stamps

    table = read_table(scores.path, _ORIGIN).table
    for name in _ORIGIN:
        if name not in table.column_names:
            raise ScoresError(f"{scores.path} has no column {name}, so its stamps cannot be found.")
    origins = table.take(pa.array(scores.in_file(rows))).to_pylist()
    if source["kind"] == "tree":
        return lupton_rgb(tree_stamps(uri, origins, source), geometry)
    names = [origin["source_file"] for origin in origins]
    with local_folder(uri, wanted=cutout_files(names, geometry).__contains__) as folder:
        return lupton_rgb(cutout_stamps(folder, names, geometry), geometry)


def example_galleries(reader: StampReader, scores: Scores, size: int) -> list[Gallery]:
    """Highest non-lenses, lowest lenses and highest lenses; every image once.

    Raises
    ------
    ProjectError
        If a stamp is not where it was when it was scored.
    """
    identity = scores.identity
    facts = {name: scores.numbers(name) for name in _FACTS if scores.has(name)}

    def gallery(title: str, caption: str, order: Rows, label: int) -> Gallery:
        # Enough of the order to find `size` images even if each comes 24 times.
        candidates = order[scores.labels[order] == label][: 32 * size]
        rows = candidates[unique_rows(identity[candidates])][:size]
        stamps = [
            Stamp(
                str(scores.table["key"][int(row)]),
                float(scores.logits[row]),
                png_uri(picture),
                int(scores.labels[row]),
                known := _known({name: float(values[row]) for name, values in facts.items()}),
                viewer_address(reader.geometry, known),
            )
            for row, picture in zip(rows, reader.rgb(rows), strict=True)
        ]
        return Gallery(title, caption, stamps)

    return [
        gallery(
            "Highest-scored non-lenses",
            "What looks most like a lens to it, flagged or not: an inspector sees these first.",
            scores.order,
            0,
        ),
        gallery(
            "Lowest-scored lenses",
            "What it misses. Most should be faint or smaller than the seeing.",
            scores.order[::-1],
            1,
        ),
        gallery(
            "Highest-scored lenses",
            "What it is surest of. Arcs should be plain to see; if they are not, look for a leak.",
            scores.order,
            1,
        ),
    ]


def missed_gallery(
    reader: StampReader, scores: SkyScores, lenses: Sequence[Mapping[str, Any]]
) -> Gallery:
    """Pictures of known lenses that were missed."""
    keys = pa.array([lens["key"] for lens in lenses], pa.string())
    rows = pc.index_in(keys, value_set=scores.table["key"].cast(pa.string())).to_numpy()
    stamps = [
        Stamp(
            lens["key"],
            lens["logit"],
            png_uri(picture),
            1,
            known := {"ra": lens["ra"], "dec": lens["dec"]},
            viewer_address(reader.geometry, known),
            f"{lens['name']} ({lens['grade']})",
        )
        for lens, picture in zip(lenses, reader.rgb(rows.astype(np.int64)), strict=True)
    ]
    caption = "Lowest score first. Are their arcs visible in these images at all?"
    return Gallery("Known lenses that were missed", caption, stamps)


def _known(facts: Mapping[str, float]) -> dict[str, float]:
    """Facts that are there: 0 says of all but a position that there is none."""
    return {
        name: value
        for name, value in facts.items()
        if value > 0 or (name in ("ra", "dec") and np.isfinite(value))
    }


def viewer_address(geometry: Geometry, facts: Mapping[str, float]) -> str | None:
    """Address of a position (``ra``, ``dec``, degrees) in the viewer of its survey, if known."""
    viewer = _VIEWERS.get(geometry.survey)
    if viewer is None or not {"ra", "dec"} <= facts.keys():
        return None
    return viewer.format(ra=facts["ra"] % 360, dec=facts["dec"])


def _stretched(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stored pixels between their percentiles, where flux cannot be recovered from them."""
    last = pixels.shape[1] - 1
    green = (pixels[:, last // 2] + pixels[:, last - last // 2]) / 2
    drawn = np.stack([pixels[:, last], green, pixels[:, 0]], 1)
    low, high = np.percentile(drawn, [1, 99.5], axis=(-2, -1), keepdims=True)
    share = np.clip((drawn - low) / np.maximum(high - low, 1e-6), 0, 1)
    return np.rint(255 * np.moveaxis(share, 1, -1)).astype(np.uint8)


def png_uri(picture: NDArray[np.uint8]) -> str:
    """A picture as a data URI, no larger than pages draw it."""
    buffer = io.BytesIO()
    image.imsave(buffer, smaller(picture), format="png")
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a data URI, so that the page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
