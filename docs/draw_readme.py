"""Make the pictures of the README from a finished demo: docs/pictures/montage.jpg and report.png.

    make demo
    python docs/draw_readme.py demo

The montage shows lenses and non-lenses of the test split; the other is the top of the report as
Chromium draws it. docs/pictures/way.svg is written by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from PIL import Image

from lensprep.dataset import Dataset
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.rgb import lupton_rgb

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = 8
LEAST_THETA_E, LEAST_SNR = 1.0, 30.0
"""Lenses that are drawn: those whose arcs can be seen, arcsec and peak signal-to-noise."""
WIDTH, HEIGHT, COLOURS = 1000, 1240, 128


def stamps(data: Dataset, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pictures of some stamps of the test split, north up."""
    pixels = data.read_pixels("test", rows).astype(np.float32)
    return lupton_rgb(denormalize(pixels, data.manifest.normalization, 0.0, 1.0))[:, ::-1]


def draw_montage(dataset: Path, out: Path) -> None:
    """A row of lenses above a row of non-lenses."""
    data = Dataset.open(str(dataset))
    names = ("label", "theta_e_arcsec", "arc_snr", "counterfactual")
    columns = data.read_sidecar("test", list(names)).to_pandas()
    plain = columns["counterfactual"].isna()
    bright = (columns["theta_e_arcsec"] >= LEAST_THETA_E) & (columns["arc_snr"] >= LEAST_SNR)
    rng = np.random.default_rng(0)
    figure, axes = plt.subplots(2, COLUMNS, figsize=(1.2 * COLUMNS, 2.5), facecolor="white")
    for line, title, chosen in (
        (axes[0], "lenses", plain & bright),
        (axes[1], "non-lenses", plain & (columns["label"] == 0)),
    ):
        rows = np.sort(rng.choice(np.flatnonzero(chosen), COLUMNS, replace=False))
        for axis, picture in zip(line, stamps(data, rows), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=10)
    figure.tight_layout(pad=0.2)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 80, "optimize": True})


def draw_report(page: Path, out: Path) -> None:
    """The top of a page, light, in few colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no chromium or google-chrome is installed: the report is not drawn")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                "--blink-settings=preferredColorScheme=1",
                *(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        image = Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        image.save(out, optimize=True)


def main(demo: str) -> None:
    """Draw both."""
    folder = Path(demo).resolve()
    draw_montage(folder / "dataset", PICTURES / "montage.jpg")
    draw_report(folder / "report" / "report.html", PICTURES / "report.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
