"""What `lensprep check` looks at: a tally of the rows, and findings drawn from it.

Thresholds without a source are conventions of this project; they are constants at the head of the
modules, and every finding states the one it was held to.
"""
