"""``python -m pipelines.cli``: the ``denoise`` command where the package is not installed."""

from pipelines.cli.app import main

main()
