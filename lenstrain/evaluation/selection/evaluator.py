"""Selection function C: share of lenses a finder recovers. Needs NumPy and the .json next to it.

C, low, high = evaluate(theta_e_arcsec=1.2, psfsize_r=1.1, arc_snr=20, src_dmag=1, level=0.95)
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

MODEL = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
AXES, SUPPORTED = MODEL["axes"], np.array(MODEL["supported"], bool)


def evaluate(*, level: float = 0.95, **values: Any) -> Any:
    """Give all axes, as numbers or arrays; level is 0.95 or 0.68. NaN: no injections there."""
    x = np.broadcast_arrays(*[np.asarray(values[axis["name"]], float) for axis in AXES])
    u = [np.log(np.maximum(v, a["floor"])) if a["log"] else v for v, a in zip(x, AXES, strict=True)]
    u = [np.round(v.ravel(), 6) for v in u]
    b = [np.ones((u[0].size, 1))]
    for term in MODEL["terms"]:
        b.append(b[0])
        for i in term:
            b[-1] = (b[-1][:, :, None] * _splines(u[i], **AXES[i])[:, None]).reshape(u[i].size, -1)
    d = np.hstack(b)
    v = np.max([((d @ np.array(v)) * d).sum(axis=1) for v in MODEL["covariances"]], axis=0)
    c = 1 / (1 + np.exp(-np.where(_supported(u), d @ np.array(MODEL["coefficients"]), np.nan)))
    r = np.array(MODEL["t"][str(level)], float) ** 2 * v * c * (1 - c)
    m, h = c + r / 2, np.sqrt(r * c * (1 - c) + r**2 / 4)  # Wilson's, at the effective number
    return [np.clip(z / (1 + r), 0, 1).reshape(x[0].shape) for z in (c + c * r, m - h, m + h)]


def _splines(u: Any, knots: Any, degree: int, **_: Any) -> Any:  # by Cox and de Boor
    t, v = np.array(knots), np.clip(np.nan_to_num(u), knots[0], knots[-1])[:, None]
    b = np.eye(t.size - 1)[np.searchsorted(t[degree + 1 : -degree - 1], v[:, 0], "right") + degree]
    for k in range(1, degree + 1):
        rise = b * (v - t[:-k]) / np.where(t[k:] > t[:-k], t[k:] - t[:-k], 1)
        b = rise[:, :-1] + b[:, 1:] - rise[:, 1:]
    return b


def _supported(u: Any) -> Any:  # a point needs its bin, or on a grid both nodes; cell -1 is empty
    sides = []
    for v, axis in zip(u, AXES, strict=True):
        at = np.nan_to_num(np.interp(v, axis["nodes"], range(len(axis["nodes"])), -1, -1), nan=-1)
        low = np.minimum(np.floor(at).astype(int), axis["cells"] - 1)
        sides.append((low, np.ceil(at).astype(int)) if axis["grid"] else (low,))
    return np.all([SUPPORTED[cell] for cell in itertools.product(*sides)], axis=0)
