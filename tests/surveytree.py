"""Small trees of any survey for tests, under the survey's own column names, in milliseconds.

survey = tiny_survey("hsc", "grizy")                     a survey with other names for columns
root = write_survey_tree(tmp_path, survey, rows=60)      its tree: every other row has an arc
pixels = survey_pixels(survey.geometry, lens)            (rows, bands, side, side), in its flux
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.dataset.geometry import Geometry
from lensprep.source.survey import Survey
from tests.phase4c import stamp_blob

SPLITS_OF_REGIONS = ("train", "train", "val", "test")
"""Splits of the regions, in turn."""


def tiny_survey(
    name: str = "hsc",
    bands: Sequence[str] = "grizy",
    side: int = 48,
    scale: float = 0.168,
    noise: float = 0.05,
    **given: Any,
) -> Survey:
    """A survey whose reference band is the middle one, and whose labels are 0 and 1."""
    geometry = Geometry(
        survey=name,
        bands=tuple(bands),
        side=side,
        pixel_scale_arcsec=scale,
        reference_band=bands[len(bands) // 2],
        zero_point=27.0,
        sky_noise=tuple(noise * (1 + number) for number in range(len(bands))),
    )
    columns = {
        "task_id": "object_id",
        "lens_model": "is_lens",
        "region_id": "tract",
        "region_split": "fold",
        "stamp_npz": "blob",
        "psfsize_r": "seeing",
    }
    return Survey(
        **{"geometry": geometry, "label_map": {"0": 0, "1": 1}, "columns": columns} | given
    )


def survey_pixels(
    geometry: Geometry, lens: NDArray[np.bool_], seed: int = 0
) -> NDArray[np.float32]:
    """Noise of the sky and a red galaxy, with a blue arc around it where there is a lens.

    Returns
    -------
    ndarray of float32, shape (rows, bands, side, side)
        In the survey's units of flux.
    """
    rng = np.random.default_rng(seed)
    bands, side, noise = len(geometry.bands), geometry.side, np.array(geometry.sky_noise)
    pixels = rng.standard_normal((len(lens), *geometry.shape)).astype(np.float32)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    galaxy = np.exp(-(radius**2) / (side / 10) ** 2)
    width = max(1.0, side / 40)
    ring = np.exp(-((radius - side / 5) ** 2) / (2 * width**2))
    red, blue = np.linspace(5, 40, bands), np.linspace(30, 10, bands)
    for row, is_lens in enumerate(lens):
        light = red[:, None, None] * rng.uniform(0.5, 1.5) * galaxy
        if is_lens:
            arc = ring * (np.cos(angle - rng.uniform(-np.pi, np.pi)) > 0)
            light = light + blue[:, None, None] * arc
        pixels[row] += light
    pixels *= noise[:, None, None]
    return pixels


def survey_table(
    survey: Survey,
    rows: int,
    seed: int = 0,
    *,
    regions: int = 12,
    without: Collection[str] = (),
    columns: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Rows of a survey under its own names for columns and splits.

    Every other row is a lens; regions go in turn to train, train, val, test and lie degrees apart.

    Parameters
    ----------
    survey : Survey
    rows, seed, regions : int
    without : collection of str
        Columns to leave out, under their names in a dataset.
    columns : mapping, optional
        Replacements and further columns, likewise.
    """
    rng = np.random.default_rng(seed)
    number = np.arange(rows)
    lens = number % 2 == 1
    region = (number // 2) % regions
    theirs = {ours: value for value, ours in survey.splits.items()}
    splits = [SPLITS_OF_REGIONS[which % len(SPLITS_OF_REGIONS)] for which in region]
    texts = {label: text for text, label in survey.label_map.items()}
    blobs = [
        stamp_blob(pixels, survey.geometry.bands)
        for pixels in survey_pixels(survey.geometry, lens, seed)
    ]
    names = [
        hashlib.sha256(f"{survey.name}/{seed}/{row}".encode()).hexdigest()[:16] for row in number
    ]
    values: dict[str, Any] = {
        "task_id": names,
        "ra": 10.0 + 3.0 * region + rng.uniform(0, 1, rows),
        "dec": rng.uniform(-20, 20, rows),
        "region_id": region,
        "region_split": _plain([theirs.get(split, split) for split in splits]),
        "lens_model": _plain([texts[int(is_lens)] for is_lens in lens]),
        "theta_e_arcsec": np.where(lens, survey.geometry.side_arcsec / 5, 0.0),
        "psfsize_r": rng.uniform(0.5, 0.9, rows),
        "psfdepth_r": rng.uniform(25.0, 27.0, rows),
        "stamp_npz": blobs,
    }
    values |= dict(columns or {})
    kept = {name: value for name, value in values.items() if name not in without}
    return pa.table({survey.stored_name(name, ()): value for name, value in kept.items()})


def write_survey_tree(
    root: Path,
    survey: Survey,
    rows: int = 60,
    seed: int = 0,
    *,
    files: int = 2,
    row_group_rows: int = 8,
    **given: Any,
) -> Path:
    """Write `survey_table` as parquet files below ``root``, which is returned."""
    table = survey_table(survey, rows, seed, **given)
    root.mkdir(parents=True, exist_ok=True)
    for number, chosen in enumerate(np.array_split(np.arange(rows), files)):
        part = table.take(pa.array(chosen))
        pq.write_table(part, root / f"part-{number}.parquet", row_group_size=row_group_rows)
    (root / "_SUCCESS").touch()
    return root


def _plain(texts: Sequence[str]) -> list[Any]:
    """Whole numbers or bools where all texts are such."""
    if {*texts} <= {"true", "false"}:
        return [text == "true" for text in texts]
    return [int(text) for text in texts] if all(text.isdigit() for text in texts) else [*texts]
