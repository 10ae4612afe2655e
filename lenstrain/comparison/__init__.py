"""Several runs, or their reports, side by side."""
