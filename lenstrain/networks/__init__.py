"""Networks by name, their weights, and ensembles of them."""
