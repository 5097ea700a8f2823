"""The ``denoise`` command: one file per group of commands."""
