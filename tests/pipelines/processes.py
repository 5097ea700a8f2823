"""What a test has started, wherever it has ended up."""

import os
import time
from contextlib import suppress

import psutil

from tests.pipelines.fork_server import MARK


def left_behind(seconds: float = 60) -> list[psutil.Process]:
    """Return what this test has started and is still there after a while, whoever its parent is now.

    A cluster that several tests share is not among them: it was started by the set-up of one of them.
    """
    deadline = time.monotonic() + seconds
    while found := [process for process in psutil.process_iter() if is_of_this_test(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return found


def is_of_this_test(process: psutil.Process) -> bool:
    """Say whether a process has inherited the environment that pytest gives every test, or is a fork for this one."""
    with suppress(psutil.Error):
        environment = process.environ()
        fork = environment.get(MARK) == str(os.getpid()) and process.ppid() != os.getpid()
        return fork or environment.get("PYTEST_CURRENT_TEST") == os.environ["PYTEST_CURRENT_TEST"]
    return False
