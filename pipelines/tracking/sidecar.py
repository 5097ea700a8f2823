"""A process beside rank 0 that sends its journal to MLflow: training shares neither MLflow's imports nor Python's lock.

The process has the lowest priority, and dies with rank 0. What it has not sent then is in the journal, from where the
driver, the next attempt or ``denoise runs sync`` sends it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from pipelines.tracking.journal import Journal
from pipelines.tracking.journal_logger import JournalLogger
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.runs import RunSpec

GRACE_SECONDS = 5.0  # more than the process is given to send what is left, after which it is killed


class SidecarLogger(JournalLogger):
    """Appends to the journal as ``MlflowLogger`` does; a process of its own sends it, and samples system metrics."""

    def __init__(self, spec: RunSpec, journal: Path) -> None:
        """Start the process.

        Args:
            spec: definition of the run, with its owner, which may be a process on another machine.
            journal: folder of this run's journal, on the local disk.

        Raises:
            UserError: the journal cannot be written.
        """
        super().__init__(spec, journal)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.tracking.sidecar"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # as Ray has set it for its worker
            text=True,
        )
        self._process, self._messages = process, cast(IO[str], process.stdin)
        # Through the pipe: a command line shows passwords to everybody, and the journal keeps none.
        self._send(journal=str(journal), uri=spec.uri)

    def inject_outage(self, seconds: float) -> None:
        """Let MLflow count as unreachable for some seconds from now on."""
        self._send(outage=seconds)

    def close(self, timeout: float = 30.0) -> bool:
        """Let the process send what is left, end it, and return whether MLflow has everything."""
        self._send(close=timeout)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout + GRACE_SECONDS)
        self._process.kill()
        with suppress(BrokenPipeError):
            self._messages.close()
        return self._process.wait() == 0 and not self._lost_entries

    def _send(self, **message: str | float) -> None:
        with suppress(BrokenPipeError):  # the process has died: the journal has everything
            self._messages.write(json.dumps(message) + "\n")
            self._messages.flush()


def main(messages: Iterable[str]) -> None:
    """Send a journal until rank 0 says that it is complete, or dies; exit with 0 if MLflow has everything."""
    os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    lines = iter(messages)
    start = json.loads(next(lines))
    journal = Path(start["journal"])
    logger = MlflowLogger(replace(Journal(journal).run_spec(), uri=start["uri"]), journal)
    for line in lines:
        message = json.loads(line)
        if "close" in message:
            sys.exit(0 if logger.close(message["close"]) else 1)
        logger.inject_outage(message["outage"])
    os._exit(1)  # rank 0 has died; whoever goes on with the run starts another process


if __name__ == "__main__":
    main(sys.stdin)
