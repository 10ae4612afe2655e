"""What `lensprep check` looks at: a tally of the rows, and findings drawn from it.

Thresholds without a cited source are conventions of this project: constants at the top of the
modules, stated with every finding that they decide.
"""
