"""Data sets: fetching images, writing them as shards, and copying shards to and from a remote."""
