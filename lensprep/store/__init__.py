"""Where bytes lie, on a local disk or in an object store: files read, written, moved and listed."""
