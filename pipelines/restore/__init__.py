"""Restoring files and folders of them: images, and stacks plane by plane."""
