"""Watching runs: what their folders hold, what that means, and how it looks in a terminal."""
