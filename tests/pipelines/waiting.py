"""A test that waits for ever, with the servers of the other tests (run by test_harness.py)."""

import os
import signal
from pathlib import Path


def test_waits(one_host, s3_server):
    Path(os.environ["READY"]).touch()
    signal.pause()
