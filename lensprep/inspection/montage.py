"""Pictures of stamps: both classes side by side, with label, theta_E, kind and key under each.

    write_montage(location, "stamps.png", count=48, seed=0)      of a dataset or one of its shards
    draw_montage(stamps.pictures()) -> matplotlib figure         of stamps in memory

Colours are those of the Legacy Survey viewer (Lupton et al. 2004), from fluxes: the normalisation
is undone, except where it clipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import Dataset, Stamps
from lensprep.errors import DatasetError
from lensprep.inspection.target import OpenShard, Target, open_target, table_numbers
from lensprep.store import S3Options, uri_suffix, written_file

if TYPE_CHECKING:
    from lensprep.drawing import Picture

_COLUMNS: Final = 4
"""Stamps side by side in each half of the picture."""
_DPI: Final = 110
_TITLES: Final = ("non-lenses", "lenses")
_MOST_SHARDS: Final = 16
"""Shards that are searched for stamps; each holds many."""


def write_montage(
    location: str | os.PathLike[str],
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
    location : str or path
        A dataset, or one of its shards.
    out : str or path
        The picture, local or s3://; its suffix says how it is drawn (png, jpg, pdf). It is written
        whole or not at all.
    split : str, optional
        Only this split; the first one if not given.
    count : int
        Stamps, half of each class where there are enough.
    seed : int
        Another seed draws other stamps.
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    list of str
        Keys of the stamps drawn, as in the picture: first all non-lenses, then all lenses.

    Raises
    ------
    DatasetError, ShardError
        If the location cannot be read or has no stamp to draw.
    """
    target = open_target(location, split, options)
    pictures = _sample(target, count, np.random.default_rng(seed))
    if not pictures:
        raise DatasetError(f"{location} has no stamp to draw.")
    figure = draw_montage(pictures)
    with written_file(out, options) as path:
        figure.savefig(path, format=uri_suffix(out)[1:] or None, dpi=_DPI)
    return [picture.key for label in (0, 1) for picture in pictures if picture.label == label]


def draw_montage(pictures: Sequence[Picture]) -> Any:
    """Pictures of stamps as a figure: non-lenses on the left, lenses on the right.

    Parameters
    ----------
    pictures : sequence of Picture

    Returns
    -------
    matplotlib.figure.Figure
    """
    from lensprep.drawing import draw_pictures  # matplotlib is slow to import

    groups = []
    for label, title in enumerate(_TITLES):
        members = [picture for picture in pictures if picture.label == label]
        groups.append((f"{title} ({len(members)})", members))
    return draw_pictures(groups, _COLUMNS)


def _sample(target: Target, count: int, rng: np.random.Generator) -> list[Picture]:
    """A sample of the first shards, which are random samples of their split themselves."""
    pictures: list[Picture] = []
    for shard in islice(target.open_shards(target.splits[0]), _MOST_SHARDS):
        label = table_numbers(shard.sidecar, "label")[0]
        chosen = []
        for wanted, quota in ((0, -(-count // 2)), (1, count // 2)):
            missing = quota - sum(picture.label == wanted for picture in pictures)
            chosen.append(rng.permutation(np.flatnonzero(label == wanted))[:missing])
        rows = np.sort(np.concatenate(chosen))
        pictures.extend(_pictures(shard, rows, target.dataset))
        if len(pictures) >= count:
            break
    return pictures


def _pictures(shard: OpenShard, rows: NDArray[np.intp], dataset: Dataset | None) -> list[Picture]:
    if not shard.has_sidecar:
        raise DatasetError(
            f"{shard.name} has no sidecar: without it the stored pixels cannot be converted back "
            "to fluxes. Keep the .parquet next to the .tar."
        )
    if dataset is None or shard.info is None:
        raise DatasetError(
            f"{shard.name} has no manifest, so its normalisation is unknown. Name the dataset."
        )
    return Stamps(
        table=shard.sidecar.take(pa.array(rows)),
        pixels=dataset.read_shard_pixels(shard.info, rows),
        geometry=dataset.geometry,
        normalization=dataset.manifest.normalization,
    ).pictures()
