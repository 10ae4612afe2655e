"""Shortcut probes: what a finder looks at, and which cues alone are enough for it."""
