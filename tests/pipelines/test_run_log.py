import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import run_log, tracking
from pipelines.run_log import RunLog
from pipelines.ui import start_server, stop_server, wait_until_up
from tests.pipelines.mlflow_helpers import free_port, shared_uri

PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(entry.step, entry.value) for entry in tracking.client(uri).get_metric_history(run_id, key)]


def pictures(uri: str, run_id: str) -> list[str]:
    names = [Path(file.path).name for file in tracking.client(uri).list_artifacts(run_id, "images")]
    return sorted(name.split("+timestamp")[0] for name in names if name.endswith(".png"))


def test_a_resumed_run_holds_nothing_twice(uri, tmp_path):
    run_id = tracking.open_run(uri, "logs", "resumed")
    Image.fromarray(PICTURE).save(tmp_path / "step-5.png")
    log = RunLog(uri, run_id, system_metrics=False)
    for step in range(10):
        log.log_metrics(step, {"loss": step, "lr": 0.1})
    log.log_metrics(9, {"loss": 99.0})
    log.log_picture("val/astronaut", tmp_path / "step-5.png", 5)
    (tmp_path / "step-5.png").unlink()
    assert log.close()

    log = RunLog(uri, run_id, system_metrics=False)
    for step in range(5, 15):  # the checkpoint was at step 5
        log.log_metrics(step, {"loss": step + 0.5, "lr": 0.1})
        log.log_picture("val/astronaut", PICTURE, step)
        assert step != 7 or log.flush()
    assert log.close()
    assert history(uri, run_id, "loss") == [(s, float(s)) for s in range(10)] + [(s, s + 0.5) for s in range(10, 15)]
    assert len(history(uri, run_id, "lr")) == 15
    assert pictures(uri, run_id) == sorted(f"val~astronaut+step+{step}" for step in range(5, 15))


def test_thousands_of_metrics_nan_and_infinity(uri):
    run_id = tracking.open_run(uri, "logs", "odd values")
    log = RunLog(uri, run_id, system_metrics=False)
    for step in range(2500):
        log.log_metrics(step, {"loss": step})
    log.log_metrics(0, {"nan": math.nan, "inf": math.inf, "minus": -math.inf})
    assert log.close()
    assert len(history(uri, run_id, "loss")) == 2500
    assert math.isnan(history(uri, run_id, "nan")[0][1])
    assert history(uri, run_id, "inf")[0][1] > 1e308  # MLflow keeps the largest float
    assert history(uri, run_id, "minus")[0][1] < -1e308


def test_the_load_of_the_machine_goes_on_where_it_stopped(uri, monkeypatch):
    monkeypatch.setattr(run_log, "SYSTEM_SECONDS", 0.0)
    run_id = tracking.open_run(uri, "logs", "system")
    for _ in range(2):
        log = RunLog(uri, run_id)
        assert log.flush()  # connects; each turn after it takes a sample
        assert log.flush()
        assert log.close()
    steps = [step for step, _ in history(uri, run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 4


def test_a_server_that_is_missing_hangs_and_comes_back_loses_nothing(uri, capfd):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    run_id = tracking.open_run(uri, "logs", "outage")
    log = RunLog(address, run_id, system_metrics=False)
    log.log_metrics(0, {"loss": 0.0, "nan": math.nan, "inf": math.inf})
    log.log_picture("val", PICTURE, 0)
    assert not log.flush()  # nobody listens
    log.log_metrics(1, {"loss": 1.0})
    assert not log.flush()
    assert capfd.readouterr().err.count("warning: MLflow at http") == 1
    server = start_server(uri, port)
    try:
        wait_until_up(server, "127.0.0.1", port)
        while not log.flush():  # does not wait while it knows of the outage
            time.sleep(0.1)
        assert "answers again" in capfd.readouterr().err
        os.killpg(server.pid, signal.SIGSTOP)  # it listens, but says nothing
        log.log_metrics(2, {"loss": 2.0})
        log.log_picture("val", PICTURE, 2)
        assert not log.flush()
        os.killpg(server.pid, signal.SIGCONT)
        assert log.close()
        assert pictures(address, run_id) == ["val+step+0", "val+step+2"]
        tracking.finish_run(address, run_id, "FINISHED")
    finally:
        os.killpg(server.pid, signal.SIGCONT)
        stop_server(server)
    assert history(uri, run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert math.isnan(history(uri, run_id, "nan")[0][1])


def test_what_could_not_be_written_is_said_at_the_end(capsys):
    log = RunLog("http://127.0.0.1:9", "some-run")
    log.log_metrics(0, {"loss": 1.0, "lr": 0.1})
    log.log_picture("val", PICTURE, 0)
    assert not log.flush()
    assert not log.close()
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "error: 2 metrics and 1 pictures of run some-run could not be written" in said
