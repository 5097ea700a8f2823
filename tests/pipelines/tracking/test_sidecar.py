"""The process beside rank 0: what rank 0 logs reaches MLflow, and neither death of the two loses anything."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import denoise
from pipelines.tracking import client as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.runs import RunSpec
from pipelines.tracking.sidecar import SidecarLogger
from tests.pipelines.mlflow_helpers import free_port, history, images, runs_named, shared_uri

PROJECT = Path(denoise.__file__).parents[1]
IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_what_rank_zero_logs_reaches_mlflow(uri, tmp_path):
    tracking.client(uri)  # there is a database
    log = SidecarLogger(RunSpec(uri, "logs", "beside"), tmp_path)
    log.log_metrics(1, {"loss": 0.5})
    log.log_image("validation", IMAGE, 1)
    log.log_metrics(2, {"loss": 0.25})
    assert log.close(120)  # on a busy machine a process of the lowest priority waits
    (run_id,) = runs_named(uri, "logs", "beside")
    assert history(uri, run_id, "loss") == [(1, 0.5), (2, 0.25)]
    assert images(uri, run_id) == ["validation-step-000001.png"]


def test_a_password_is_in_no_command_line_and_an_outage_is_told_once(tmp_path, capfd):
    address = f"http://ada:secret@127.0.0.1:{free_port()}"
    log = SidecarLogger(RunSpec(address, "logs", "some-run"), tmp_path)
    process = psutil.Process(log._process.pid)
    assert "secret" not in " ".join(process.cmdline())
    assert process.nice() in (0, 19)  # it lowers its priority itself, as soon as it runs
    log.inject_outage(60)
    log.log_metrics(1, {"loss": 0.5})
    assert not log.close(30)
    warnings = capfd.readouterr().err
    assert warnings.count("cannot be written to") == warnings.count("injected by --inject tracker-down") == 1
    assert "`denoise runs sync some-run` sends it" in warnings
    assert "secret" not in warnings + "".join(file.read_text() for file in tmp_path.glob("*.json"))
    assert not process.is_running()


def test_rank_zero_outlives_the_process(uri, tmp_path):
    log = SidecarLogger(RunSpec(uri, "logs", "outlived"), tmp_path)
    log.log_metrics(1, {"loss": 0.5})
    process = psutil.Process(log._process.pid)
    process.kill()
    log.inject_outage(1)
    log.log_metrics(2, {"loss": 0.25})
    assert not log.close()
    assert [point.value for point in Journal(tmp_path).all_points() if point.key == "loss"] == [0.5, 0.25]


RANK_ZERO = """
import os, sys
from pathlib import Path
import psutil
from pipelines.tracking.runs import RunSpec
from pipelines.tracking.sidecar import SidecarLogger
log = SidecarLogger(RunSpec(sys.argv[1], "logs", "orphan"), Path(sys.argv[2]))
print(psutil.Process().children()[0].pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_process_dies_with_rank_zero(uri, tmp_path):
    command = [sys.executable, "-c", RANK_ZERO, uri, str(tmp_path)]
    killed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    pid, deadline = int(killed.stdout), time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
