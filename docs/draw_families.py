"""Draw families of counterfactuals as a picture: docs/explanation/families.jpg.

    python docs/draw_families.py SRC COUNTERFACTUALS OUT

Each row of the picture is a host: as it is, with the donor's arc, and with the same light in other
places. Those whose arcs are resolved and bright are shown, in the colours of the Legacy Survey
viewer.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib import pyplot as plt

from lensprep.dataset.layout import COUNTERFACTUAL, STAMP_SHAPE
from lensprep.dataset.rgb import lupton_rgb
from lensprep.decode.stampnpz import decode
from lensprep.source.tree import Source

KINDS = ("lensed", "unlensed", "magnified", "extended", "scattered", "companion")
FAMILIES = 6
LEAST_RATIO, SNR = 0.7, (25.0, 150.0)
SIDE_PX = 44
"""Central part that is shown: 11.5 arcsec."""


def rows_of(uri: str) -> list[dict[str, Any]]:
    """Rows of the test files of a tree."""
    source = Source.open(uri)
    files = [file for file in source.files if file.split == "test"]
    return pa.concat_tables([t for file in files for t in source.iter_file(file)]).to_pylist()


def picture(row: dict[str, Any]) -> np.ndarray:
    """RGB of the middle of a stamp, north up."""
    stamp = np.empty(STAMP_SHAPE, np.float32)
    if decode(row["stamp_npz"], stamp) is not None:
        raise SystemExit(f"{row['task_id']} has no stamp")
    cut = (64 - SIDE_PX) // 2
    return lupton_rgb(stamp[None])[0][cut:-cut, cut:-cut][::-1]


def main(src: str, counterfactuals: str, out: str) -> None:
    """Choose families and draw them."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows_of(counterfactuals):
        key = row["host_task_id"], row["donor_task_id"]
        found.setdefault(key, {})[row[COUNTERFACTUAL]] = row
    hosts = {row["task_id"]: row for row in rows_of(src)}
    chosen = []
    for (host, _), kinds in sorted(found.items()):
        lens = kinds["lensed"]
        ratio = lens["theta_e_arcsec"] / lens["psfsize_r"]
        if ratio >= LEAST_RATIO and SNR[0] < lens["arc_snr"] < SNR[1] and {*KINDS} <= {*kinds}:
            chosen.append((hosts[host], kinds, ratio))
    titles = ("host", *KINDS)
    figure, axes = plt.subplots(
        FAMILIES, len(titles), figsize=(1.25 * len(titles), 1.25 * FAMILIES), squeeze=False
    )
    for line, (host, kinds, ratio) in zip(axes, chosen, strict=False):
        for axis, row in zip(line, (host, *(kinds[kind] for kind in KINDS)), strict=True):
            axis.imshow(picture(row), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        snr = kinds["lensed"]["arc_snr"]
        line[0].set_ylabel(f"θ_E / PSF {ratio:.2f}\narc SNR {snr:.0f}", fontsize=7)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.2)
    figure.savefig(out, dpi=110, pil_kwargs={"quality": 72})


if __name__ == "__main__":
    main(*sys.argv[1:])
