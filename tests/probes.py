"""Settings with which the probes of a checkpoint take seconds.

They are read here and now: a name that is no longer a setting fails every run of the tests, and not
only those in which the long ones take part.
"""

from lensprep.configfile import load_config
from lenstrain.probes.options import ProbeOptions

QUICK = (
    "per_class=20",
    "injections=5",
    "attribution=2",
    "occlusion_arcsec=4.192",
    "occlusion_stride_arcsec=4.192",
    "resamples=50",
)
load_config(ProbeOptions, None, QUICK)

QUICK_SETS = [part for setting in QUICK for part in ("--set", setting)]
"""The same on a command line."""
