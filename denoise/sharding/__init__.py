"""Sharding: writing shards, and finding test images among training images."""
