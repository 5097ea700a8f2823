"""The ``denoise`` command, also as ``python -m pipelines.cli`` where the package is not installed."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback from its first import on."""
    try:
        from pipelines.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
