"""Controls that take a shortcut away: the light of a lens on a non-lens, but not as a lens.

    plan     hosts, donors, and which gets which
    light    where the light of each kind lies (pure)
    stamp    through the host's seeing, with photon noise (pure)
    family   the rows of one file
    balance  what tells the classes apart without shape (pure)
    tree     part files beside those of the source, resumable

Needs the extra ``synth`` (lenstronomy).
"""

from lensprep.counterfactual.tree import make_counterfactuals

__all__ = ["make_counterfactuals"]
