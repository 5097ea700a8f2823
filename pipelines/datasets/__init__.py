"""Data sets: fetching images, writing them as shards, and bringing shards to and from a remote."""
