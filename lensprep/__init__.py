"""Convert Phase 4c parquet into shards that are both WebDataset tars and arrays."""

__version__ = "0.2.0"
