"""Whether pixels have the noise that they are stored by: another unit or depth is not in silence.

    measure(tables, geometry) -> dict                   medians of one task's rows
    find_doubt(measured, spec, geometry) -> str | None  one line for the user, of all tasks

``asinh_survey`` scales every stamp by the softenings of the survey. Flux of another zero point is
then stored far within the first step of the curve, or as its clip, and nothing else would say so.
It decides no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from lensprep.dataset.geometry import Geometry
from lensprep.dataset.normalization import NormalizationSpec

_FACTOR: Final = 5.0
"""Largest ratio of noise and softening, either way, that is not doubted: the noise of a survey
varies less (25 times the exposures make a factor of 5), and zero points in use are farther apart (5
is 1.7 magnitudes). Up to it the stored noise has a width between 0.2 and asinh(5) = 2.3, and at one
sigma a fifth of the contrast is left."""
_MOST_CLIPPED: Final = 0.01
"""Largest part of the median stamp that may be clipped without doubt: 41 of 64 x 64 pixels are the
core of an object. By default values are clipped at sinh(10) = 11,000 softenings, which but bright
stars have."""


def measure(tables: Sequence[pa.Table], geometry: Geometry) -> dict[str, Any] | None:
    """Medians over the accepted rows of a task; None if it has none.

    Parameters
    ----------
    tables : sequence of pyarrow.Table
        Sidecar rows with ``scale_<band>`` and ``clip_frac_<band>``.
    geometry : Geometry

    Returns
    -------
    dict
        ``rows``, and by band ``scale`` in units of flux and ``clip_frac``.
    """
    rows = sum(table.num_rows for table in tables)
    if not rows:
        return None
    medians = {
        name: {
            band: float(np.median(np.concatenate([table[f"{name}_{band}"] for table in tables])))
            for band in geometry.bands
        }
        for name in ("scale", "clip_frac")
    }
    return {"rows": rows, **medians}


def find_doubt(
    measured: Sequence[dict[str, Any]], spec: NormalizationSpec, geometry: Geometry
) -> str | None:
    """What is odd about the noise of a source, and what to do; None if nothing is.

    Parameters
    ----------
    measured : sequence of dict
        As from `measure`, one for each task.
    spec : NormalizationSpec
    geometry : Geometry
    """
    if spec.mode != "asinh_survey" or not measured:
        return None
    doubts = []
    for band in geometry.bands:
        softening = float(spec.parameters[f"softening_{band}"])
        noise, clipped = (_weighted_median(measured, name, band) for name in ("scale", "clip_frac"))
        if not softening / _FACTOR <= noise <= softening * _FACTOR:
            doubts.append(f"the noise of {band} is {noise:.2g}, its softening {softening:.2g}")
        if clipped > _MOST_CLIPPED:
            doubts.append(f"{clipped:.0%} of the median stamp are clipped in {band}")
    if not doubts:
        return None
    return (
        f"Is this another unit or depth than that of {geometry.survey}? By {spec.mode}, "
        f"{'; '.join(doubts)}. State the sky_noise that is measured here in a --survey file, or "
        "use --normalize mad_stamp."
    )


def _weighted_median(measured: Sequence[dict[str, Any]], name: str, band: str) -> float:
    """Median over tasks of their medians, each as often as it has rows; in no order of theirs."""
    medians = np.array([task[name][band] for task in measured])
    order = np.argsort(medians, kind="stable")
    rows = np.cumsum(np.array([task["rows"] for task in measured])[order])
    return float(medians[order][np.searchsorted(rows, rows[-1] / 2)])
