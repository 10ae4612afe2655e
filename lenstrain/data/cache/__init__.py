"""A folder of local copies of shards that lie in an object store."""
