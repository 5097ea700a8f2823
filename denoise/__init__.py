"""The core: what a noise2X method is. torch and files, no services."""
