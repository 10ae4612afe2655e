"""Controls that take a shortcut away: the light of a lens on a non-lens, but not as a lens."""
