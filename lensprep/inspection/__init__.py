"""Reading a dataset: what is in it, how it looks, and whether it is intact."""
