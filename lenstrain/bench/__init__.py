"""Benchmarks: the loader, the way from an object store, and training."""
