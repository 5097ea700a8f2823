"""Run commands one after another, each in a fork of this process, and write down which of our modules it imported.

Reads from standard input a JSON object of commands: name -> arguments of ``denoise``. Writes FOLDER/NAME.json for each,
also where the command ends with an error. Libraries are imported once, before the forks.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch  # noqa: F401
import webdataset  # noqa: F401


def run(arguments: list[str], output: Path) -> int:
    """Run ``denoise`` and return its exit code."""
    sys.argv = ["denoise", *arguments]
    try:
        from pipelines.cli.app import main

        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        names = sorted(name for name in sys.modules if name.partition(".")[0] in ("denoise", "pipelines"))
        output.write_text(json.dumps(names))
    return 0


def main(folder: Path) -> None:
    """Run the commands."""
    for name, arguments in json.load(sys.stdin).items():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(arguments, folder / f"{name}.json")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{name} ended with {code}", file=sys.stderr, flush=True)


main(Path(sys.argv[1]))
