"""Columns by what an audit may do with them (pure)."""

from __future__ import annotations

from typing import Final

from lensprep.dataset import BANDS

FORBIDDEN: Final = (
    "config_id",
    "is_control",
    "theta_e_arcsec",
    "src_dmag",
    "src_reff_arcsec",
    "src_e",
    "shear",
    "src_x_arcsec",
    "src_y_arcsec",
    "src_phi_rad",
    "shear_phi_rad",
    "src_gr",
    "src_rz",
    "arc_snr",
    "total_injected_flux_r",
    "magnification",
    "psf_fwhm_used_g",
    "psf_fwhm_used_r",
    "psf_fwhm_used_z",
    "psf_source_g",
    "psf_source_r",
    "psf_source_z",
    "lens_model",
    "lens_e",
    "lens_phi_rad",
    "tangential_stretch",
    "radial_stretch",
    "expected_arc_radius",
    "physics_valid",
    "physics_warnings",
)
"""Columns that tell the label, by value or by being null: never an input of a model."""

NORM_STATS: Final = tuple(f"{what}_{b}" for what in ("median", "scale", "clip_frac") for b in BANDS)
"""What normalisation measured of a stamp."""

IDENTITY: Final = (
    "key",
    "label",
    "task_id",
    "task_seed64",
    "pixel_hash",
    "payload_crc32",
    "source_file",
    "source_row_group",
    "source_row",
    "region_split",
    "split",
    "region_id",
    "brickname",
    "ra",
    "dec",
)
"""Names, places and checksums: no properties, so no metadata that a probe would learn from."""

REQUIRED: Final = ("key", "label", "region_id", "lens_model", "theta_e_arcsec", *NORM_STATS)
"""Columns without which the checks of labels and leaks cannot be done."""
