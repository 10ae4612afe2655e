"""The maps of a few stamps, and whether the evidence lies where the arcs are."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from lensprep.dataset.rgb import lupton_rgb
from lenstrain.probes.attribution import (
    Maps,
    arc_masks,
    gradcam_maps,
    mass_over_area,
    occlusion_maps,
    window_side,
)
from lenstrain.probes.looking import Baseline
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.radii import to_px
from lenstrain.probes.sample import Sample
from lenstrain.probes.scoring import Scorer
from lenstrain.training.run import seeded


@dataclass(frozen=True)
class Attention:
    """Maps of some stamps, for the figure, and what was measured on them."""

    stamps: Sample
    logits: NDArray[np.float64]
    pictures: NDArray[np.uint8]
    occlusion: Maps
    gradcam: Maps
    entry: dict[str, Any]


def measure_attention(base: Baseline, scorer: Scorer, options: ProbeOptions) -> Attention:
    """Draw maps of the lenses whose arcs are brightest and largest, and of the worst non-lenses."""
    rows = _choose(base, options.attribution)
    stamps, logits = base.sample.take(rows), base.logits[rows]
    geometry = stamps.geometry
    patch, stride = (max(1, round(to_px(side, geometry))) for side in
                     (options.occlusion_arcsec, options.occlusion_stride_arcsec))  # fmt: skip
    occlusion = occlusion_maps(
        scorer,
        stamps.pixels,
        patch=min(patch, geometry.side),
        stride=stride,
        seed=options.seed,
        geometry=geometry,
    )
    gradcam = gradcam_maps(scorer.model, stamps.pixels, scorer.device)
    random = gradcam_maps(randomised(scorer.model, options.seed), stamps.pixels, scorer.device)
    entry = {
        "stamps": len(rows),
        "randomised_correlation": _rank_correlation(gradcam, random),
    } | _on_arcs(stamps, occlusion, gradcam, window_side(scorer.model, occlusion.shape[-1]))
    pictures = lupton_rgb(stamps.flux(), geometry)
    return Attention(stamps, logits, pictures, occlusion, gradcam, entry)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model with new random weights (Adebayo et al. 2018, arXiv:1810.03292).

    They are drawn on the CPU, and thus the same for every device.
    """
    device = next(model.parameters()).device
    twin = copy.deepcopy(model).cpu()
    with seeded(seed, torch.device("cpu")):
        for module in twin.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return twin.to(device).eval()


def _choose(base: Baseline, n: int) -> NDArray[np.int64]:
    """Bright, wide lenses first; then the non-lenses with the highest logits."""
    sample = base.sample
    lens = np.flatnonzero(sample.labels == 1)
    wide = -sample.numbers("theta_e_arcsec")[lens]
    order = np.lexsort((-base.logits[lens], wide, ~base.bright[lens]))
    others = np.flatnonzero(sample.labels == 0)
    worst = others[np.argsort(-base.logits[others])]
    return np.concatenate([lens[order[:n]], worst[: n // 2]])


def _on_arcs(stamps: Sample, occlusion: Maps, gradcam: Maps, window: int) -> dict[str, Any]:
    """Share of the maps' mass on the arcs over their share of the area, median over the lenses."""
    if not stamps.has("theta_e_arcsec", "psfsize_r"):
        return {"occlusion_mass_over_area": None, "gradcam_mass_over_area": None}
    lens = stamps.labels == 1
    theta, fwhm = (stamps.numbers(name)[lens] for name in ("theta_e_arcsec", "psfsize_r"))
    masks = arc_masks(theta, fwhm, occlusion.shape[-1], stamps.geometry.pixel_scale_arcsec)
    found = {}
    for name, maps in (("occlusion", occlusion), ("gradcam", gradcam)):
        ratio = mass_over_area(maps[lens], masks, window)
        known = ratio[np.isfinite(ratio)]
        found[f"{name}_mass_over_area"] = float(np.median(known)) if known.size else None
    return found


def _rank_correlation(first: Maps, second: Maps) -> float | None:
    values = [
        stats.spearmanr(a.ravel(), b.ravel()).statistic
        for a, b in zip(first, second, strict=True)
        if a.std() > 0 and b.std() > 0
    ]
    return float(np.mean(values)) if values else None
