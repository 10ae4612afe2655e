"""What `lensprep check` looks at: a tally of the rows, and findings drawn from it.

Thresholds without a source are conventions of this project; they are constants at the head of the
modules, and every finding states the one it was held to.
"""

from lensprep.checks import leaks, rows, splits
from lensprep.checks.finding import Circumstances, Finding
from lensprep.checks.tally import Tally

__all__ = ["Circumstances", "Finding", "Tally", "all_findings"]


def all_findings(tally: Tally, about: Circumstances) -> tuple[Finding, ...]:
    """Every finding, in the order in which a person reads them."""
    finders = (*rows.FINDERS, *splits.FINDERS, *leaks.FINDERS)
    return tuple(find(tally, about) for find in finders)
