"""Training runs: on Ray Train, in one process, or under torchrun."""
