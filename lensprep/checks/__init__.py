"""What `lensprep check` looks at: a tally of the rows, and findings drawn from it.

Thresholds without a source are conventions of this project: constants at the head of the modules,
stated with every finding that they decide.
"""
