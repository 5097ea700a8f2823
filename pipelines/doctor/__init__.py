"""Checks of a cluster before a long run."""
