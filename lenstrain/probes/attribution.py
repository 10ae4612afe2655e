"""Where in a stamp the evidence lies: occlusion and Grad-CAM maps, and how far to trust them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lensprep.dataset import DECALS, Geometry
from lensprep.dataset.normalization import radius_px
from lenstrain.probes.scoring import BATCH, Scorer
from lenstrain.probes.views import fill_with_sky
from lenstrain.training.validate import full_float32

Maps = NDArray[np.float64]


def occlusion_maps(
    scorer: Scorer,
    pixels: NDArray[np.float16],
    *,
    patch: int,
    stride: int,
    seed: int,
    geometry: Geometry = DECALS,
) -> Maps:
    """Logit that is lost when a square is replaced by sky, averaged over the squares on a pixel.

    Parameters
    ----------
    scorer : Scorer
    pixels : ndarray of float16, shape (n, bands, S, S)
    patch, stride : int
        Side and step of the square, pixels.
    seed : int
    geometry : Geometry

    Returns
    -------
    ndarray of float64, shape (n, S, S)
        Positive where the content raises the logit.
    """
    size = pixels.shape[-1]
    last = size - patch
    edges = sorted({*range(0, last, stride), last})  # every pixel is hidden at least once
    corners = [(y, x) for y in edges for x in edges]
    masks = np.zeros((len(corners), size, size), np.bool_)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + patch, x : x + patch] = True
    cover = masks.sum(0)
    rng = np.random.default_rng(seed)
    whole = scorer(pixels)
    maps = np.zeros((len(pixels), size, size))
    for number, stamp in enumerate(pixels):
        for start in range(0, len(corners), BATCH):  # all copies of a large stamp are gigabytes
            part = masks[start : start + BATCH]
            copies = np.broadcast_to(stamp, (len(part), *stamp.shape))
            loss = whole[number] - scorer(fill_with_sky(copies, part, rng, geometry))
            maps[number] += np.tensordot(loss, part, axes=1)
        maps[number] /= np.maximum(cover, 1)
    return maps


def gradcam_maps(model: nn.Module, pixels: NDArray[np.float16], device: Any = "cpu") -> Maps:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the last map before pooling, float32.

    Returns
    -------
    ndarray of float64, shape (n, S, S)
        Not negative; resampled to the pixels that the network sees, 0 beyond them.
    """
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            last[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    x_BCHW = torch.from_numpy(pixels.astype(np.float32)).to(device).requires_grad_(True)
    with full_float32():
        try:
            logit_B = model(x_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        (feature_BCHW,) = last
        (gradient_BCHW,) = torch.autograd.grad(logit_B.sum(), feature_BCHW)
    weight_BC11 = gradient_BCHW.mean((2, 3), keepdim=True)
    cam_B1HW = torch.relu((weight_BC11 * feature_BCHW).sum(1, keepdim=True)).detach()
    size = pixels.shape[-1]
    window = window_side(model, size)
    seen = torch.nn.functional.interpolate(
        cam_B1HW, (window, window), mode="bilinear", align_corners=False
    )
    edge = (size - window) // 2
    padded = torch.nn.functional.pad(seen, (edge, size - window - edge) * 2)
    return np.asarray(padded[:, 0].double().cpu().numpy())


def window_side(model: nn.Module, size: int) -> int:
    """Side of the central window that a model sees, pixels."""
    crop = getattr(model, "crop", None)
    return int(crop) if crop else size


def arc_masks(
    theta_e_arcsec: NDArray[np.float64],
    fwhm_arcsec: NDArray[np.float64],
    size: int,
    scale: float = DECALS.pixel_scale_arcsec,
) -> NDArray[np.bool_]:
    """Where the arcs of a lens can be: within half a PSF of the Einstein ring; (n, S, S)."""
    distance = radius_px(size)[None] * scale
    off = np.abs(distance - theta_e_arcsec[:, None, None])
    return np.asarray(off <= fwhm_arcsec[:, None, None] / 2)


def mass_over_area(maps: Maps, masks: NDArray[np.bool_], window: int) -> NDArray[np.float64]:
    """Share of a map's positive mass inside a mask over the mask's share of the window.

    Above 1: the evidence lies there. NaN for a map without positive mass.
    """
    size = maps.shape[-1]
    edge = (size - window) // 2
    part = (slice(None), slice(edge, edge + window), slice(edge, edge + window))
    positive, inside = np.maximum(maps[part], 0), masks[part]
    total = positive.sum((1, 2))
    share = np.where(total > 0, (positive * inside).sum((1, 2)) / np.where(total > 0, total, 1),
                     np.nan)  # fmt: skip
    return np.asarray(share / inside.mean((1, 2)))
