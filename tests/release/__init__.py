"""A release of the project: whether a commit is fit for it, its packages, and that they work."""
