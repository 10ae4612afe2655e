"""Stamps of two other surveys than DECaLS: one band of odd side, and six bands of small stamps."""

from lensprep.dataset import Geometry

VIS = Geometry(
    survey="vis",
    bands=("vis",),
    side=101,
    pixel_scale_arcsec=0.1,
    reference_band="vis",
    zero_point=23.9,
    sky_noise=(0.01,),
)
UGRIZY = Geometry(
    survey="six",
    bands=tuple("ugrizy"),
    side=48,
    pixel_scale_arcsec=0.2,
    reference_band="i",
    zero_point=31.4,
    sky_noise=(0.5, 0.2, 0.2, 0.3, 0.5, 0.9),
)
GEOMETRIES = (VIS, UGRIZY)
