"""Stamps with some of their content taken away, so that the finder must use the rest.

All functions take stored pixels of shape (n, bands, S, S) and return new ones. What is taken away
is replaced by the stamp's own sky: pixels drawn from its outskirts, all bands together, so that the
noise, its colour and its level stay those of the stamp.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import DECALS, Geometry
from lensprep.dataset.normalization import radius_px
from lenstrain.probes.radii import sky_inner_px

Pixels = NDArray[np.float16]
Mask = NDArray[np.bool_]


def fill_with_sky(
    pixels: Pixels, mask: Mask, rng: np.random.Generator, geometry: Geometry = DECALS
) -> Pixels:
    """Replace pixels by others of the same stamp's sky.

    Parameters
    ----------
    pixels : ndarray of float16, shape (n, bands, S, S)
    mask : ndarray of bool, shape (S, S) or (n, S, S)
        What to replace.
    rng : numpy.random.Generator
    geometry : Geometry
    """
    size = pixels.shape[-1]
    sky = np.flatnonzero(radius_px(size) >= sky_inner_px(geometry))
    flat = pixels.reshape(*pixels.shape[:2], -1)
    drawn = rng.choice(sky, (len(pixels), size * size))
    replacement = np.take_along_axis(flat, drawn[:, None, :], axis=2)
    chosen = np.broadcast_to(mask, (len(pixels), size, size)).reshape(len(pixels), 1, -1)
    return np.where(chosen, replacement, flat).reshape(pixels.shape)


def mask_core(
    pixels: Pixels, radius: float, rng: np.random.Generator, geometry: Geometry = DECALS
) -> Pixels:
    """Take away everything within a radius in pixels: host and arcs."""
    return fill_with_sky(pixels, radius_px(pixels.shape[-1]) < radius, rng, geometry)


def keep_core(
    pixels: Pixels, radius: float, rng: np.random.Generator, geometry: Geometry = DECALS
) -> Pixels:
    """Take away everything beyond a radius in pixels: neighbours and sky."""
    return fill_with_sky(pixels, radius_px(pixels.shape[-1]) >= radius, rng, geometry)


def keep_annulus(
    pixels: Pixels,
    inner: float,
    outer: float,
    rng: np.random.Generator,
    geometry: Geometry = DECALS,
) -> Pixels:
    """Keep an annulus of sky only, between two radii in pixels."""
    distance = radius_px(pixels.shape[-1])
    return fill_with_sky(pixels, (distance < inner) | (distance >= outer), rng, geometry)


def shuffle_rings(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Shuffle the pixels of each ring of one pixel's width: brightness stays, shape goes.

    The bands of a pixel move together, so that the colour profile stays too.
    """
    size = pixels.shape[-1]
    ring = np.floor(radius_px(size)).astype(np.int64).ravel()
    order = np.argsort(ring, kind="stable")
    noise = rng.random((len(pixels), size * size))
    # Sorting by ring, then by chance: position k of a ring takes a random pixel of that ring.
    shuffled = np.argsort(ring[None, :] + noise, axis=1)
    source = np.empty_like(shuffled)
    np.put_along_axis(source, np.broadcast_to(order, source.shape), shuffled, axis=1)
    flat = pixels.reshape(*pixels.shape[:2], -1)
    return np.take_along_axis(flat, source[:, None, :], axis=2).reshape(pixels.shape)


def scramble_colour(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Give each stamp its bands, of which it has several, in another order; none keeps its own."""
    orders = np.array(list(permutations(range(pixels.shape[1]))))[1:]  # the first is their own
    chosen = orders[rng.integers(0, len(orders), len(pixels))]
    return np.take_along_axis(pixels, chosen[:, :, None, None], axis=1)


def remove_asymmetry(
    pixels: Pixels,
    flux: NDArray[np.float32],
    radius: NDArray[np.float64],
    sigmas: float = 3.0,
    geometry: Geometry = DECALS,
) -> Pixels:
    """Take away what has no counterpart on the other side of the centre, within a radius.

    A pixel brighter than the one opposite by more than `sigmas` of their noise takes its value. A
    host is symmetric under half a turn and stays; an arc without an equal counter-image goes. What
    is brighter is judged in flux, where noise is the same on an arc and on the sky: stored pixels
    may be a curve of it. A pixel that stays keeps every bit.

    Parameters
    ----------
    pixels : ndarray of float16, shape (n, bands, S, S)
    flux : ndarray of float32, same shape
        The same pixels denormalised.
    radius : ndarray, shape (n,)
        Pixels.
    sigmas : float
        In units of the noise of a difference, measured beyond `sky_inner_px`.
    geometry : Geometry
    """
    distance = radius_px(pixels.shape[-1])
    sky = flux[..., distance >= sky_inner_px(geometry)]
    centre = np.median(sky, axis=-1, keepdims=True)
    noise = 1.4826 * np.median(np.abs(sky - centre), axis=-1)[..., None, None]
    inside = distance[None, None] <= np.asarray(radius)[:, None, None, None]
    excess = inside & (flux - flux[..., ::-1, ::-1] > sigmas * np.sqrt(2) * noise)
    return np.where(excess, pixels[..., ::-1, ::-1], pixels)
