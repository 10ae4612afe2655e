"""Convert Phase 4c parquet into shards that are WebDataset tars and arrays at once."""

__version__ = "0.2.0"
