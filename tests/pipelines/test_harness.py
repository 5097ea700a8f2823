"""What the tests promise: a run of them that is ended leaves no process behind."""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
WAITING = Path(__file__).with_name("waiting.py")


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes which have inherited a mark in their environment."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("MARK") == mark:
                processes.append(process)
    return processes


def test_a_pytest_that_is_ended_by_sigterm_leaves_no_process(tmp_path):
    mark, ready = secrets.token_hex(8), tmp_path / "ready"
    environment = {**os.environ, "MARK": mark, "READY": str(ready)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/inner", WAITING]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as tests:
        while not ready.exists():
            assert tests.poll() is None, tests.stdout.read()
            time.sleep(0.1)
        assert len(marked(mark)) > 4  # Ray's head is several processes
        tests.send_signal(signal.SIGTERM)
        assert tests.wait(120) == 143, tests.stdout.read()
    _, alive = psutil.wait_procs(marked(mark), timeout=60)
    assert alive == []
