"""Check for near-duplicates: stamps of two splits whose noise is the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.sparse
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Geometry, NormalizationSpec
from lensprep.dataset.normalization import denormalize, radius_px
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.probes.radii import sky_inner_px
from lenstrain.probes.sky import sky_statistics, stamp_blocks

CLIP: Final = 3.0
"""Pixels this many times the scatter of the stamp's own sky from its level are neighbours, not
noise, and do not count."""
SKETCH: Final = 512
"""Numbers that stand for a stamp's noise; unrelated stamps then correlate by 0 +- 0.044."""
CANDIDATE: Final = 0.25
"""Correlation of sketches from which a pair is compared pixel by pixel."""
QUARTER: Final = 0.15
"""Correlation of duplicates in every quarter of a stamp; a similar neighbour lies in one only."""
SMOOTH_PX: Final = 5
"""About the seeing: light varies no faster, noise does."""
_LARGE: Final = 4 * DECALS.payload_bytes
"""Of stamps with more bytes fewer are compared, so that they fit into memory."""
_SHOWN = 3

Noise = NDArray[np.float32]


class Pair(NamedTuple):
    """Two stamps with the same noise."""

    correlation: float
    keys: tuple[str, str]


def check_near_duplicates(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Correlate the sky's noise of stamps of different splits, in the 8 rotations and flips."""
    limits = config.data
    splits = sorted(evidence.splits, key=lambda name: (name != "train", name))
    if len(splits) < 2:
        raise NotRunError("There is one split only.")
    share = min(1.0, _LARGE / evidence.geometry.payload_bytes)
    rows = {name: int(share * (limits.copy_train_rows if name == "train" else limits.copy_rows))
            for name in splits}  # fmt: skip
    if evidence.dataset.manifest.normalization.by_stamp is None:
        mode = evidence.dataset.manifest.normalization.mode
        raise NotRunError(f"Normalisation {mode} is unknown to this version.")
    drawn = {name: _draw(evidence, name, rows[name], config.seed) for name in splits}
    flat = {name: int(np.count_nonzero(~pixels.any(axis=(1, 2, 3))))
            for name, (_, pixels) in drawn.items()}  # fmt: skip
    if any(flat[name] == len(keys) for name, (keys, _) in drawn.items()):
        raise NotRunError("All stamps of a split have a sky without noise: nothing to compare.")
    found: dict[str, list[Pair]] = {}
    for one, two in combinations(splits, 2):
        found[f"{one}-{two}"] = find_copies(
            drawn[one], drawn[two], limits.copy_correlation, evidence.geometry
        )
    total = sum(len(pairs) for pairs in found.values())
    looked = {name: len(keys) for name, (keys, _) in drawn.items()}
    worst = sorted((pair for pairs in found.values() for pair in pairs), reverse=True)[:_SHOWN]
    text = ", ".join(f"{n:,} of {len(evidence.rows_of(name)):,} rows of {name}"
                     for name, n in looked.items())  # fmt: skip
    return Outcome(
        passed=not total,
        measured={"pairs": {name: len(pairs) for name, pairs in found.items()}, "looked_at": looked,
                  "without_noise": flat,
                  "worst": [[*pair.keys, pair.correlation] for pair in worst]},
        threshold={"pairs": 0, "correlation": limits.copy_correlation},
        detail=(
            f"{total:,} pairs of stamps in two splits have the same noise, such as "
            f"{' and '.join(worst[0].keys)} (correlation {worst[0].correlation:.2f}): they are "
            "duplicates."
            if total
            else "No two stamps of different splits have the same noise."
        )
        + f" Compared {text}. Duplicates are found even if rotated or flipped, with added noise of "
        "up to about 1.5 times the sky's; shifted ones are not."
        + (f" {sum(flat.values()):,} stamps could not be compared: their sky has no noise."
           if any(flat.values()) else ""),
    )  # fmt: skip


Stamps = tuple[list[str], NDArray[np.float16]]
"""Keys and pixels in units of the sky's scatter, see `in_sky_units`."""


def _draw(evidence: Evidence, split: str, rows: int, seed: int) -> Stamps:
    keys = evidence.sidecar(split, ["key"])["key"]
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(len(keys), min(rows, len(keys)), replace=False))
    pixels = evidence.dataset.read_pixels(split, evidence.rows_of(split)[index])
    spec = evidence.dataset.manifest.normalization
    return keys.take(index).to_pylist(), in_sky_units(pixels, spec, evidence.geometry)


def in_sky_units(
    pixels: NDArray[np.float16], spec: NormalizationSpec, geometry: Geometry = DECALS
) -> NDArray[np.float16]:
    """Flux less the level of each stamp's and band's own sky, over its scatter, within `CLIP`.

    Stored pixels will not do: asinh bends, and on a bright or noisy sky all of it would lie beyond
    a fixed number. Half of a sky lies within its scatter, so every stamp keeps pixels to compare,
    but for one whose scatter is 0, which becomes 0 throughout.
    """
    # Any median and scale will do: where the mode has them divided out, level and scatter do too.
    level, scatter = sky_statistics(pixels, spec, 0.0, 1.0, geometry)
    safe = np.where(scatter > 0, scatter, np.inf)
    made = np.empty_like(pixels)
    for part in stamp_blocks(pixels):
        flux = denormalize(pixels[part], spec, 0.0, 1.0)
        values = (flux - level[part][..., None, None]) / safe[part][..., None, None]
        made[part] = np.clip(values, -CLIP, CLIP)
    return made


def find_copies(
    first: Stamps, second: Stamps, least: float, geometry: Geometry = DECALS
) -> list[Pair]:
    """Pairs of stamps with the same noise, in any turn or flip: the best for each of `second`.

    Every stamp's noise is hashed into `SKETCH` numbers (a count sketch, which keeps inner products
    [1]_), so that all pairs can be compared by products of small matrices; candidates are then
    compared whole.

    Parameters
    ----------
    first, second : keys and pixels in units of the sky's scatter, shape (n, bands, S, S)
    least : float
        Correlation from which two stamps are duplicates.
    geometry : Geometry

    References
    ----------
    .. [1] Charikar, Chen & Farach-Colton 2004, Theor. Comput. Sci. 312, 3.
    """
    kept = np.concatenate([_sketch(noise) for _, noise in _blocks(first[1], geometry)])
    found: dict[int, Pair] = {}
    for start, noise in _blocks(second[1], geometry):
        for turned in _orientations(noise):
            for theirs, ours in np.argwhere(_sketch(turned) @ kept.T > CANDIDATE):
                correlation = same_noise(_noise(first[1][ours][None], geometry)[0], turned[theirs])
                row = start + int(theirs)
                if correlation >= least and (
                    row not in found or found[row].correlation < correlation
                ):
                    found[row] = Pair(correlation, (first[0][ours], second[0][row]))
    return list(found.values())


def _orientations(noise: Noise) -> Iterator[Noise]:
    """The 8 rotations and flips."""
    for flipped in (noise, noise[..., ::-1]):
        for turns in range(4):
            yield np.ascontiguousarray(np.rot90(flipped, turns, axes=(-2, -1)))


def same_noise(one: Noise, two: Noise) -> float:
    """Correlation of two stamps' noise, (bands, S, S); 0 if any quarter does not correlate."""
    half = one.shape[-1] // 2
    parts = [(..., rows, columns) for rows in (slice(half), slice(half, None))
             for columns in (slice(half), slice(half, None))]  # fmt: skip
    alike = min(_correlation(one[part], two[part]) for part in parts) >= QUARTER
    return _correlation(one, two) if alike else 0.0


def _correlation(one: Noise, two: Noise) -> float:
    size = float(np.sqrt((one**2).sum() * (two**2).sum()))
    return float((one * two).sum()) / size if size > 0 else 0.0


def _noise(pixels: NDArray[np.float16], geometry: Geometry) -> Noise:
    """Sky's noise of stamps, shape (n, bands, S, S): 0 in the middle and where a neighbour lies.

    The mean of the `SMOOTH_PX` pixels around is taken away: what is left varies faster than any
    light behind the seeing, so hosts' wings and gradients, which look alike, do not correlate.
    """
    values = pixels.astype(np.float32)
    noise = values - scipy.ndimage.uniform_filter(values, (0, 0, SMOOTH_PX, SMOOTH_PX))
    noise[np.abs(values) >= CLIP] = 0.0
    noise[..., radius_px(geometry.side) < sky_inner_px(geometry)] = 0.0
    return np.asarray(noise, np.float32)


def _sketch(noise: Noise) -> Noise:
    """Sketches of unit length, shape (n, SKETCH)."""
    flat = noise.reshape(len(noise), -1)
    made = np.asarray(flat @ _plan(flat.shape[1]), np.float32)
    length = np.linalg.norm(made, axis=1, keepdims=True)
    return np.asarray(made / np.where(length > 0, length, 1.0), np.float32)


@cache
def _plan(pixels: int) -> scipy.sparse.csr_matrix:
    """Which of the `SKETCH` sums each pixel is added to, and with which sign."""
    rng = np.random.default_rng(0)
    sign = rng.choice(np.array((-1.0, 1.0), np.float32), pixels)
    place = (np.arange(pixels), rng.integers(SKETCH, size=pixels))
    return scipy.sparse.csr_matrix((sign, place), shape=(pixels, SKETCH))


def _blocks(pixels: NDArray[np.float16], geometry: Geometry) -> Iterator[tuple[int, Noise]]:
    for part in stamp_blocks(pixels):
        yield part.start, _noise(pixels[part], geometry)
