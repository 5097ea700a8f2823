"""Checks of a Ray cluster, host by host, before a long run."""
