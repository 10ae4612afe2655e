"""What `lenstrain probe` can be asked for: one frozen dataclass, checked, touching nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lensprep.configfile import typed


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeOptions:
    """Settings of the probes; every figure follows from these, the checkpoint and the dataset."""

    split: Literal["train", "val", "test"] = "val"
    """Split to draw stamps from. Not ``test``, which is opened once, for its scores."""

    per_class: int = 1500
    """Most stamps of each class. A false-positive rate of 1 % then rests on 15 stamps."""

    seed: int = 0
    """Seed of the sample and of all noise."""

    fpr: float = 0.01
    """False-positive rate, on the sampled non-lenses, at which a stamp counts as flagged."""

    core_arcsec: float = 2.62
    """Radius of the core, 10 pixels of 0.262 arcsec: it holds the arcs of a 1 arcsec lens behind a
    1.3 arcsec PSF."""

    sky_inner_arcsec: float = 5.24
    """Inner radius of the annulus of sky, 20 pixels of 0.262 arcsec; nearer where a stamp is too
    small for the annulus."""

    sky_outer_arcsec: float = 8.384
    """Outer radius of the annulus of sky: the inscribed circle of 64 pixels of 0.262 arcsec, or of
    a smaller stamp."""

    bright_arc_snr: float = 20.0
    """Lenses whose arc has at least this peak SNR must lose their score when the arc is hidden."""

    ring_radii_arcsec: tuple[float, ...] = (0.6, 1.0, 1.5)
    """Radii of the rings that are drawn on blank sky and on non-lenses."""

    injections: int = 500
    """Most stamps of each injection probe."""

    attribution: int = 8
    """Lenses, and half as many non-lenses, whose maps are drawn."""

    occlusion_arcsec: float = 2.096
    """Side of the occluding square: about a PSF and a half, 8 pixels of 0.262 arcsec."""

    occlusion_stride_arcsec: float = 1.048
    """Step of the occluding square."""

    baseline_train_rows: int = 20_000
    """Most distinct images of ``train`` that light profiles are learnt from."""

    baseline_rows: int = 20_000
    """Most distinct images of the split that light profiles and the network are compared on."""

    resamples: int = 1000
    """Draws of regions behind each interval."""

    def __post_init__(self) -> None:
        counts = ("per_class", "injections", "attribution", "resamples",
                  "baseline_train_rows", "baseline_rows")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if not 0 < self.fpr < 1:
            raise ValueError(f"fpr must lie between 0 and 1, got {self.fpr}")
        if not 0 < self.core_arcsec < self.sky_inner_arcsec < self.sky_outer_arcsec:
            raise ValueError("0 < core_arcsec < sky_inner_arcsec < sky_outer_arcsec must hold")
        if not self.ring_radii_arcsec or min(self.ring_radii_arcsec) <= 0:
            raise ValueError("ring_radii_arcsec must be positive")
        if not 0 < self.occlusion_stride_arcsec <= self.occlusion_arcsec:
            raise ValueError("the occluding square must have a side, and move by no more than it")
