"""Where the bytes of shards come from: mapped files, ranged reads, bare tars."""
