"""What the columns of our tables are: unit, UCD and description, each written once.

    known_column("ra")               Known("deg", "pos.eq.ra;meta.main", "right ascension")
    known_column("psfsize_r_lo")     the edge of a cell along a known axis
    known_column("objid")            nothing: all three are empty

Units are those of VOUnits and FITS, UCDs are IVOA's UCD1+, without one where its vocabulary has no
word. Fluxes have no unit here, since their zero point is the survey's. A name means the same in
every survey, so that no band is named but by the column itself.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Known(NamedTuple):
    """What a column is."""

    unit: str = ""
    ucd: str = ""
    description: str = ""
    """At most 67 ASCII characters: one card of a FITS header."""


_LOGIT: Final = "stat.value;src.class"
_SHARE: Final = "meta.number;arith.ratio"
_SIZE: Final = "phys.angSize"
_SEEING: Final = "instr.obsty.seeing"
_FLAG: Final = "meta.code.status"

_COLUMNS: Final = {
    "key": Known("", "meta.id;meta.main", "identity of the stamp, of its task and its pixels"),
    "label": Known("", "meta.code.class", "1 lens, 0 non-lens"),
    "logit": Known("", _LOGIT, "score: log odds that it is a lens, before calibration"),
    "probability": Known("", "stat.probability;src.class", "calibrated probability of a lens"),
    "split": Known("", "meta.code", "train, val or test"),
    "embedding": Known("", "stat.param", "features that the head of the network sees"),
    "pixel_hash": Known("", "meta.checksum;obs.image", "digest of the pixels as they came"),
    "payload_crc32": Known("", "meta.checksum", "CRC-32 of the pixels in the shard"),
    "source_file": Known("", "meta.id;meta.file", "file that the row came from"),
    "source_row_group": Known("", "meta.record;meta.file", "row group of that file, from 0"),
    "source_row": Known("", "meta.record", "row of that row group, from 0"),
    "weight": Known("", "stat.weight", "how many times as often a training draws the row"),
    "rank": Known("", "stat.rank", "place by score among the controls of the bin"),
    # Of a survey: lensprep.source.survey says what a source may hold in them.
    "task_id": Known("", "meta.id", "identity of the row in its source"),
    "experiment_id": Known("", "meta.id", "the run of the pipeline"),
    "selection_set_id": Known("", "meta.id", "the selection of galaxies that it is of"),
    "ranking_mode": Known("", "meta.code", "how that selection ranked galaxies"),
    "selection_strategy": Known("", "meta.code", "how that selection drew from them"),
    "brickname": Known("", "meta.id;obs.field", "brick of the survey, which lies in one region"),
    "bandset": Known("", "instr.bandpass", "letters of the bands in the stamp"),
    "config_id": Known("", "meta.id", "settings of the injection"),
    "region_split": Known("", "meta.code", "split as its source states it"),
    "region_id": Known("", "meta.id;obs.field", "patch of sky, which lies in one split"),
    "stamp_size": Known("pixel", "meta.number;instr.pixel", "side of the stamp"),
    "replicate": Known("", "meta.number", "number of a repetition of the same task"),
    "is_control": Known("", "meta.code.class", "1 for a non-lens, 0 for a lens"),
    "cutout_ok": Known("", _FLAG, "1 if upstream has a stamp"),
    "metrics_only": Known("", _FLAG, "1 if upstream kept no stamp on purpose"),
    "ra": Known("deg", "pos.eq.ra;meta.main", "right ascension"),
    "dec": Known("deg", "pos.eq.dec;meta.main", "declination"),
    "theta_e_arcsec": Known("arcsec", _SIZE, "Einstein radius, along the minor axis of the mass"),
    "src_dmag": Known("mag", "phot.mag;arith.diff", "source minus host, before it is magnified"),
    "src_reff_arcsec": Known(
        "arcsec", _SIZE, "half-light radius of the source, along its major axis"
    ),
    "src_e": Known("", "src.ellipticity", "ellipticity of the source"),
    "shear": Known("", "", "external shear"),
    "task_seed64": Known("", "meta.number", "seed that upstream drew the task with"),
    "src_x_arcsec": Known("arcsec", "pos.cartesian.x", "x of the source from the lens"),
    "src_y_arcsec": Known("arcsec", "pos.cartesian.y", "y of the source from the lens"),
    "src_phi_rad": Known("rad", "pos.posAng", "position angle of the source"),
    "shear_phi_rad": Known("rad", "pos.posAng", "position angle of the shear"),
    "psf_bin": Known("", f"meta.code;{_SEEING}", "quantile of the seeing"),
    "depth_bin": Known("", "meta.code;instr.sensitivity", "quantile of the depth"),
    "ab_zp_nmgy": Known("mag", "arith.zp;phot.mag", "AB magnitude of one unit of flux"),
    "pipeline_version": Known("", "meta.version;meta.software", "version of the upstream pipeline"),
    "psfsize_r": Known("arcsec", _SEEING, "FWHM of the PSF in the reference band"),
    "psfdepth_r": Known(
        "mag", "instr.sensitivity;phot.mag", "5 sigma depth for point sources, reference band"
    ),
    "ebv": Known("mag", "phot.color.excess", "reddening by dust of the Galaxy, E(B-V)"),
    "arc_snr": Known(
        "", "stat.snr;stat.max", "highest S/N of a pixel of the arc in the reference band"
    ),
    "total_injected_flux_r": Known("", "phot.flux", "flux of the arc in the reference band"),
    "magnification": Known("", "phot.flux;arith.ratio", "flux of the arc over that of the source"),
    "bad_pixel_frac": Known("", _SHARE, "share of pixels that the survey masks"),
    "wise_brightmask_frac": Known("", _SHARE, "share of pixels near a star that is bright in WISE"),
    "metrics_ok": Known("", _FLAG, "1 if upstream could measure the stamp"),
    "lens_model": Known("", "meta.code.class", "the label as its source states it"),
    "lens_e": Known("", "src.ellipticity", "ellipticity of the mass"),
    "lens_phi_rad": Known("rad", "pos.posAng", "position angle of the mass"),
    "tangential_stretch": Known("", "arith.factor", "how much images are stretched along the ring"),
    "radial_stretch": Known("", "arith.factor", "how much images are stretched across the ring"),
    "expected_arc_radius": Known("arcsec", _SIZE, "radius at which the arc should lie"),
    "physics_valid": Known("", "meta.code.qual", "1 if upstream's checks of the arc found nothing"),
    "physics_warnings": Known("", "meta.note", "what they found"),
    "counterfactual": Known(
        "", "meta.code.class", "kind of a counterfactual; null in ordinary rows"
    ),
    "host_task_id": Known("", "meta.id.parent", "non-lens that a counterfactual was made from"),
    "donor_task_id": Known("", "meta.id.assoc", "lens whose light it was given"),
    "origin": Known("", "meta.code", "simulated, real, or another word; null means simulated"),
    "kind": Known("", "meta.code.class", "kind of object (of rejects: filtered or rejected)"),
    "grade": Known("", "meta.code.qual", "how sure its catalogue is of a lens: A, B, ..."),
    # Of rows that were left out.
    "class": Known("", "meta.code.class", "what the row is: positive, control, ..."),
    "reason": Known("", "meta.note", "why it is left out"),
    "detail": Known("", "meta.note", "what was found in its file"),
    # Of completeness and the selection function.
    "axes": Known("", "meta.code", "axes that the cell is of"),
    "theta_e_over_psf": Known(
        "", f"{_SIZE};arith.ratio", "Einstein radius over the FWHM of the PSF"
    ),
    "threshold": Known("", _LOGIT, "logit above which a lens is recovered"),
    "target_fpr": Known("", "stat.falsePositive", "false-positive rate that was aimed at"),
    "n": Known("", "meta.number", "lenses in the cell"),
    "recovered": Known("", "meta.number", "of these, recovered"),
    "completeness": Known("", "stat.probability", "probability that a lens is recovered"),
    "regions": Known("", "meta.number;obs.field", "regions of sky that hold these lenses"),
    "unresolved_share": Known("", _SHARE, "of the lenses, unresolved in this seeing"),
    "supported": Known("", "meta.code.qual", "whether the cell holds enough injections"),
    "population_share": Known("", _SHARE, "of the population, in this cell"),
    "injection_weight": Known("", "stat.weight", "of an injection, to weigh as the population"),
}

_FAMILIES: Final = {
    r"logit_(\d+)": Known("", _LOGIT, "the same by member {} of the ensemble"),
    r"embedding_(\d+)": Known("", "stat.param", "the same of member {}"),
    r"median_(\w+)": Known("", "phot.flux;stat.median", "median of the pixels in {}"),
    r"scale_(\w+)": Known("", "stat.stdev;phot.flux", "scale by which {} was normalised"),
    r"clip_frac_(\w+)": Known("", _SHARE, "share of pixels clipped in {}"),
    r"psf_fwhm_used_(\w+)": Known(
        "arcsec", _SEEING, "FWHM of the PSF that the arc was blurred by in {}"
    ),
    r"psf_source_(\w+)": Known(
        "", "meta.code", "source of that PSF in {}: 0 map, 1 manifest, 2 fallback"
    ),
    r"src_([a-z])([a-z])": Known("mag", "phot.color", "colour {} - {} of the source"),
    r"lo(\d\d)": Known("", "stat.probability;stat.min", "lower end at {} %, by lenses"),
    r"hi(\d\d)": Known("", "stat.probability;stat.max", "upper end at {} %, by lenses"),
    r"region_lo(\d\d)": Known("", "stat.probability;stat.min", "lower end at {} %, by region"),
    r"region_hi(\d\d)": Known("", "stat.probability;stat.max", "upper end at {} %, by region"),
    r"joint_lo(\d\d)": Known("", "stat.probability;stat.min", "lower end at {} %, of all cells"),
    r"joint_hi(\d\d)": Known("", "stat.probability;stat.max", "upper end at {} %, of all cells"),
}
"""Columns that there are several of, such as one for each band."""

_ENDS: Final = {"lo": ("stat.min", "lower"), "hi": ("stat.max", "upper")}


def known_column(name: str) -> Known:
    """Unit, UCD and description of a column; empty where nothing is known of it."""
    if name in _COLUMNS:
        return _COLUMNS[name]
    for pattern, family in _FAMILIES.items():
        if found := re.fullmatch(pattern, name):
            return family._replace(description=family.description.format(*found.groups()))
    axis, _, end = name.rpartition("_")
    if end not in _ENDS or axis not in _COLUMNS:
        return Known()
    (word, side), (unit, ucd, _) = _ENDS[end], _COLUMNS[axis]
    return Known(unit, f"{ucd};{word}", f"{side} edge of the cell in {axis}")
