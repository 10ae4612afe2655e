"""Realistic synthetic Phase 4c data, for the demo, tests and documentation.

    priors   what hosts, lenses and arcs are drawn from (pure)
    survey   regions, bricks, seeing, depth: where every row lies (pure)
    hosts    galaxies and stars
    lenses   lensed sources, traced by lenstronomy
    imaging  point-spread function and noise
    rows     one row: stamp and columns
    defects  what is known to go wrong, planted on purpose (pure)
    tree     part files in Hive folders

Needs the extra ``synth`` (lenstronomy).
"""

from lensprep.synth.defects import DEFAULT_RATES
from lensprep.synth.tree import synthesize

__all__ = ["DEFAULT_RATES", "synthesize"]
