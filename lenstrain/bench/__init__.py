"""Benchmarks: the loader, reading from an object store, and training."""
