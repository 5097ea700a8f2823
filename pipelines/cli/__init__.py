"""The ``denoise`` command, a file a group of commands."""
