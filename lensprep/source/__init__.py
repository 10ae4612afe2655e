"""The input: trees of Phase 4c parquet and folders of cutouts, listed and read."""
