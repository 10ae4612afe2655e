"""One row of Phase 4c: a stamp and the columns that describe it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, STAMP_SIZE
from lensprep.source.survey import COLUMNS, STAMP_MEMBERS, ZERO_POINT
from lensprep.synth.hosts import Host, draw_host, draw_scene
from lensprep.synth.imaging import GRID, MARGIN, gaussian_transfer, make_camera, observe
from lensprep.synth.lenses import Arc, Lens, draw_lens, trace, trace_as_phase4c
from lensprep.synth.priors import UPSTREAM, Priors
from lensprep.synth.survey import Brick, bad_fractions, is_lens

EXPERIMENT_ID: Final = "train_stamp64_bandsgrz_gridgrid_small"
PIPELINE_VERSION: Final = "phase4_pipeline_v1"
CONTROL_CONFIG: Final = "control"

_SELECTIONS = tuple(
    {
        "selection_set_id": f"set{number:02d}_{ranking}_{strategy}",
        "ranking_mode": ranking,
        "selection_strategy": strategy,
    }
    for number, (ranking, strategy) in enumerate(
        product(
            ("area_weighted", "lrg_density", "image_quality"),
            ("balanced_grid", "psf_stratified", "depth_stratified", "uniform"),
        )
    )
)


class Row(NamedTuple):
    """One row: what goes into the table."""

    pixels: NDArray[np.float32]
    """Shape (3, 64, 64): g, r, z, nanomaggies."""
    columns: dict[str, Any]
    """Every column of the contract but the blob."""


def render_row(seed: int, index: int, brick: Brick, split: str, priors: Priors = UPSTREAM) -> Row:
    """Render one row from the seed of the tree, its index in the plan, brick and priors alone."""
    rng = np.random.default_rng([seed, 2, index])
    galaxy = galaxy_id(brick, index)
    host = draw_host(rng, brick.ebv, priors)
    light = scipy.fft.rfft2(draw_scene(rng, host, brick.ebv))
    camera = make_camera(brick)
    columns = _common(rng, seed, galaxy, brick, split)
    # Drawn for controls as well: upstream does not set these two to zero for them.
    colour = _source_colour(rng, priors)
    columns |= {"src_gr": colour[0], "src_rz": colour[1]}
    added = priors.arcs == "added"
    seen: NDArray[np.float32] | None = None
    if is_lens(seed, galaxy):
        lens = draw_lens(rng, host, priors)
        arc = trace_as_phase4c(lens) if added else trace(lens, host.x_px, host.y_px)
        flux = _source_flux(host, lens, colour)
        arc_light = flux.astype(np.float32)[:, None, None] * scipy.fft.rfft2(arc.image)
        psf = gaussian_transfer(brick.psfsize_arcsec) if added else camera.transfer
        seen = scipy.fft.irfft2(arc_light * psf, s=(GRID, GRID))
        snr = float(seen[1].max() / camera.sky_sigma[1])
        columns |= _injection_columns(rng, brick, lens, arc, flux, snr, priors)
        if not added:
            light += arc_light
    else:
        columns |= _control_columns()
    pixels = observe(light, camera, rng)
    if added and seen is not None:
        pixels += seen[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    columns["task_id"] = _task_id(columns)
    return Row(pixels, columns)


def encode_stamp(pixels: NDArray[np.float32]) -> bytes:
    """The blob of a stamp, as upstream writes it."""
    buffer = io.BytesIO()
    bands = (band.astype("<f4", copy=False) for band in pixels)
    np.savez_compressed(buffer, **dict(zip(STAMP_MEMBERS, bands, strict=True)))
    return buffer.getvalue()


def repeat_task(columns: Mapping[str, Any], copy: int) -> dict[str, Any]:
    """Columns of the same stamp in another selection set or replicate, as upstream repeats it.

    Parameters
    ----------
    columns : mapping
        Of the row as rendered.
    copy : int
        1 to 23: 12 selection sets times 2 replicates hold the stamp and 23 repeats.
    """
    ids = [selection["selection_set_id"] for selection in _SELECTIONS]
    number = ids.index(columns["selection_set_id"]) + copy
    changed = dict(columns) | _SELECTIONS[number % len(ids)]
    changed["replicate"] = (columns["replicate"] + copy // len(ids)) % 2
    changed["task_id"] = _task_id(changed)
    return changed


def galaxy_id(brick: Brick, index: int) -> str:
    """Name of the galaxy of a row of the plan."""
    return f"{brick.name}_{index}"


def _common(
    rng: np.random.Generator, seed: int, galaxy: str, brick: Brick, split: str
) -> dict[str, Any]:
    """Columns that do not depend on the class."""
    selection = _SELECTIONS[rng.integers(len(_SELECTIONS))]
    bad, wise = bad_fractions(rng)
    row_seed = hashlib.sha256(f"{seed}:{galaxy}".encode()).digest()[:8]
    return {
        "experiment_id": EXPERIMENT_ID,
        **selection,
        "region_id": brick.region_id,
        "region_split": split,
        "brickname": brick.name,
        "ra": float(rng.uniform(*brick.ra_deg)),
        "dec": float(rng.uniform(*brick.dec_deg)),
        "stamp_size": STAMP_SIZE,
        "bandset": "".join(BANDS),
        "replicate": int(rng.integers(2)),
        "cutout_ok": 1,
        "metrics_only": 0,
        "metrics_ok": 1,
        "task_seed64": int.from_bytes(row_seed, "little", signed=True),
        "psf_bin": brick.psf_bin,
        "depth_bin": brick.depth_bin,
        "ab_zp_nmgy": ZERO_POINT,
        "pipeline_version": PIPELINE_VERSION,
        "psfsize_r": brick.psfsize_arcsec[1],
        "psfdepth_r": brick.psfdepth_mag[1],
        "ebv": brick.ebv,
        "bad_pixel_frac": bad,
        "wise_brightmask_frac": wise,
    }


def _source_colour(rng: np.random.Generator, priors: Priors) -> tuple[float, float]:
    """Colours of a star-forming source, g - r and r - z, within the documented [-0.5, 1.5]."""
    rz_at_0, slope, rz_scatter = priors.source_rz_mag
    gr = rng.normal(*priors.source_gr_mag)
    rz = rz_at_0 + slope * gr + rng.normal(0.0, rz_scatter)
    return float(np.clip(gr, -0.5, 1.5)), float(np.clip(rz, -0.5, 1.5))


def _source_flux(host: Host, lens: Lens, colour: tuple[float, float]) -> NDArray[np.float64]:
    """Unlensed flux of the source in g, r, z: its r is fainter than the host's by ``src_dmag``."""
    r = host.flux_r * 10 ** (-0.4 * lens.src_dmag)
    return np.array([r * 10 ** (-0.4 * colour[0]), r, r * 10 ** (0.4 * colour[1])])


def _injection_columns(
    rng: np.random.Generator,
    brick: Brick,
    lens: Lens,
    arc: Arc,
    flux: NDArray[np.float64],
    snr: float,
    priors: Priors,
) -> dict[str, Any]:
    sources = rng.choice(3, len(BANDS), p=priors.psf_source_shares)
    columns = asdict(lens) | {
        "config_id": lens.config_id,
        "is_control": 0,
        "arc_snr": snr,
        "total_injected_flux_r": float(arc.image.sum(dtype=np.float64) * flux[1]),
        "magnification": arc.magnification,
        "tangential_stretch": arc.tangential_stretch,
        "radial_stretch": arc.radial_stretch,
        "expected_arc_radius": arc.radius_arcsec,
        "physics_valid": int(not arc.warnings),
        "physics_warnings": ",".join(arc.warnings),
    }
    for i, band in enumerate(BANDS):
        columns[f"psf_fwhm_used_{band}"] = brick.psfsize_arcsec[i]
        columns[f"psf_source_{band}"] = int(sources[i])
    return columns


def _control_columns() -> dict[str, Any]:
    """Values that the contract prescribes for controls: zero or null."""
    filler = {"zero": 0.0, "null": None}
    columns: dict[str, Any] = {
        column.name: filler[column.controls] for column in COLUMNS if column.controls != "value"
    }
    return columns | {"config_id": CONTROL_CONFIG, "is_control": 1, "lens_model": "CONTROL"}


def _task_id(columns: Mapping[str, Any]) -> str:
    """64 hex digits from the columns that define the task."""
    names = ("experiment_id", "selection_set_id", "task_seed64", "config_id", "replicate")
    return hashlib.sha256("|".join(str(columns[name]) for name in names).encode()).hexdigest()
