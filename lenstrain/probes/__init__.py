"""Shortcut probes: what a finder looks at, and what it is content with."""
