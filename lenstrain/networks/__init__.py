"""Networks by name, their weights, and several of them as one."""
