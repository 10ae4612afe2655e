"""A folder ready for an archive: what a finder is, what it was made from, and how to check it."""
