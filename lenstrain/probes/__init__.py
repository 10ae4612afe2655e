"""Shortcut probes: what a finder looks at, and what is enough for it."""
