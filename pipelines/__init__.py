"""The shell: one module per stage, one per service."""
