"""What comes in: trees of Phase 4c parquet and folders of cutouts, listed and read."""
