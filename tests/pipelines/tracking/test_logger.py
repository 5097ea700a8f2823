"""Logging of a run: everything reaches MLflow once, whatever happens to MLflow, the disk or the process."""

import math
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import denoise
from pipelines.tracking import client as tracking
from pipelines.tracking import logger
from pipelines.tracking.journal import METRICS, Journal
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.runs import RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import free_port, history, images, runs_named, shared_uri

PROJECT = Path(denoise.__file__).parents[1]
IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_a_resumed_run_holds_nothing_twice(uri, tmp_path):
    spec = RunSpec(uri, "logs", "resumed")
    run_id = get_or_create_run(spec)
    Image.fromarray(IMAGE).save(tmp_path / "step-5.png")
    log = MlflowLogger(spec, tmp_path / "journal", system_metrics=False)
    for step in range(10):
        log.log_metrics(step, {"loss": step, "lr": 0.1})
    log.log_metrics(9, {"loss": 99.0})
    log.log_image("val/astronaut", tmp_path / "step-5.png", 5)
    (tmp_path / "step-5.png").unlink()
    assert log.close()

    for journal in (tmp_path / "journal", tmp_path / "journal of another machine"):
        log = MlflowLogger(spec, journal, system_metrics=False)
        for step in range(5, 15):  # the checkpoint was at step 5
            log.log_metrics(step, {"loss": step + 0.5, "lr": 0.1})
            log.log_image("val/astronaut", IMAGE, step)
            assert step != 7 or log.flush()
        assert log.close()
    assert history(uri, run_id, "loss") == [(s, float(s)) for s in range(10)] + [(s, s + 0.5) for s in range(10, 15)]
    assert len(history(uri, run_id, "lr")) == 15
    assert images(uri, run_id) == sorted(f"val~astronaut-step-{step:06d}.png" for step in range(5, 15))
    assert runs_named(uri, "logs", "resumed") == [run_id]


def test_thousands_of_metrics_nan_and_infinity(uri, tmp_path):
    spec = RunSpec(uri, "logs", "odd values")
    log = MlflowLogger(spec, tmp_path, system_metrics=False)  # opens the run itself
    for step in range(2500):
        log.log_metrics(step, {"loss": step})
    log.log_metrics(0, {"nan": math.nan, "inf": math.inf, "minus": -math.inf})
    log.log_metrics(0, {f"many/{number}": number for number in range(1100)})  # more than a request may hold
    assert log.close()
    (run_id,) = runs_named(uri, "logs", "odd values")
    assert len(history(uri, run_id, "loss")) == 2500
    assert history(uri, run_id, "many/1099") == [(0, 1099.0)]
    assert math.isnan(history(uri, run_id, "nan")[0][1])
    assert history(uri, run_id, "inf")[0][1] > 1e308  # MLflow keeps the largest float
    assert history(uri, run_id, "minus")[0][1] < -1e308


def test_system_metrics_continue_at_the_next_step(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(logger, "SYSTEM_SECONDS", 0.0)
    spec = RunSpec(uri, "logs", "system")
    run_id = get_or_create_run(spec)
    for journal in ("journal", "journal", "journal of another machine"):
        log = MlflowLogger(spec, tmp_path / journal)
        for _ in range(3):  # a sample is taken after each replay
            assert log.flush(60)
        assert log.close()
    steps = [step for step, _ in history(uri, run_id, logger.SYSTEM_KEY)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 6


def test_system_metrics_are_kept_while_mlflow_is_down(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(logger, "SYSTEM_SECONDS", 0.0)
    spec = RunSpec(uri, "logs", "system in an outage")
    log = MlflowLogger(spec, tmp_path)
    log.inject_outage(math.inf)
    wait_for(lambda: log.flush() or len(Journal(tmp_path).points()[0]) > 30)  # several samples of a dozen values
    assert not log.close()
    assert MlflowLogger(spec, tmp_path, system_metrics=False).close()
    (run_id,) = runs_named(uri, "logs", "system in an outage")
    steps = [step for step, _ in history(uri, run_id, logger.SYSTEM_KEY)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_is_missing_hangs_dies_and_comes_back_loses_nothing(uri, server, tmp_path, capfd):
    log = MlflowLogger(RunSpec(server.address, "outages", "outage"), tmp_path, system_metrics=False)
    log.log_metrics(0, {"loss": 0.0, "nan": math.nan, "inf": math.inf})
    log.log_image("val", IMAGE, 0)
    assert not log.flush()  # nobody listens
    log.log_metrics(1, {"loss": 1.0})
    assert not log.flush()
    assert capfd.readouterr().err.count("warning: MLflow at http") == 1
    server.start()
    wait_for(log.flush)  # does not wait while it knows of the outage
    assert "answers again" in capfd.readouterr().err

    server.signal(signal.SIGSTOP)  # it listens, but says nothing
    log.log_metrics(2, {"loss": 2.0})
    log.log_image("val", IMAGE, 2)
    assert not log.flush(timeout=1)
    server.signal(signal.SIGCONT)
    wait_for(log.flush)

    server.kill()
    log.log_metrics(3, {"loss": 3.0})
    log.log_image("val", IMAGE, 3)
    assert not log.flush()
    server.start()
    log.log_metrics(4, {"loss": 4.0})
    assert log.close()
    (run_id,) = runs_named(uri, "outages", "outage")
    assert images(server.address, run_id) == ["val-step-000000.png", "val-step-000002.png", "val-step-000003.png"]
    tracking.finish_run(server.address, run_id, "FINISHED")
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(5)]
    assert math.isnan(history(uri, run_id, "nan")[0][1])


@pytest.mark.slow
def test_a_server_that_dies_under_load_gets_everything_once(uri, server, tmp_path):
    """It is killed wherever it happens to be, also between the parts of a request."""
    server.start()
    log = MlflowLogger(RunSpec(server.address, "outages", "load"), tmp_path, system_metrics=False)
    assert log.flush(60)
    for step in range(60):
        log.log_metrics(step, {f"metric {number}": step for number in range(20)})
        log.log_image("val", IMAGE, step)
        if step in (10, 40):
            threading.Thread(target=log.flush, daemon=True).start()
            wait_for(lambda reached=step: len(written(uri, "load")) > reached // 2)
            server.kill()
        if step in (20, 50):
            server.start()
    wait_for(log.flush, 300)
    assert log.close()
    (run_id,) = runs_named(uri, "outages", "load")
    assert all(history(uri, run_id, f"metric {number}") == [(s, float(s)) for s in range(60)] for number in range(20))
    assert images(server.address, run_id) == sorted(f"val-step-{step:06d}.png" for step in range(60))


def written(uri: str, name: str) -> list[tuple[int, float]]:
    (run_id,) = runs_named(uri, "outages", name)
    return history(uri, run_id, "metric 0")


def test_a_server_that_never_answers_holds_nobody_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        log = MlflowLogger(RunSpec(address, "logs", "silent"), tmp_path, system_metrics=False)
        log.log_metrics(0, {"loss": 1.0})
        assert not log.flush(timeout=10_000)  # longer than a test may last
        assert not log.flush(timeout=10_000)
        assert not log.close(timeout=10_000)


def test_what_could_not_be_sent_is_kept_and_reported_at_the_end(tmp_path, capsys):
    log = MlflowLogger(RunSpec(f"http://127.0.0.1:{free_port()}", "logs", "some-run"), tmp_path)
    log.log_metrics(0, {"loss": 1.0, "lr": 0.1})
    log.log_image("val", IMAGE, 0)
    assert not log.flush()
    assert not log.close()
    warnings = capsys.readouterr().err
    assert warnings.count("cannot be written to") == 1
    assert f"kept in {tmp_path}, and `denoise runs sync some-run` sends it" in warnings
    assert {point.key for point in Journal(tmp_path).all_points()} >= {"loss", "lr"}
    assert [image.step for image in Journal(tmp_path).images()] == [0]


def test_an_outage_can_be_injected(uri, tmp_path, capsys):
    log = MlflowLogger(RunSpec(uri, "logs", "injected"), tmp_path, system_metrics=False)
    log.log_metrics(0, {"loss": 0.0})
    assert log.flush(60)
    log.inject_outage(math.inf)
    log.log_metrics(1, {"loss": 1.0})
    assert not log.flush()
    (run_id,) = runs_named(uri, "logs", "injected")
    assert history(uri, run_id, "loss") == [(0, 0.0)]
    log.inject_outage(0)
    wait_for(log.flush)
    assert log.close()
    assert history(uri, run_id, "loss") == [(0, 0.0), (1, 1.0)]
    assert "outage injected by --inject tracker-down" in capsys.readouterr().err


ATTEMPT = """
import sys
import numpy as np
from pathlib import Path
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.runs import RunSpec
log = MlflowLogger(RunSpec(sys.argv[1], "logs", "killed"), Path(sys.argv[2]), system_metrics=False)
for step in range(10**9):
    log.log_metrics(step, {"loss": step})
    if step % 10 == 0:
        log.log_image("val", np.zeros((4, 6, 3), np.uint8), step)
    print(step, flush=True)
"""


def test_what_a_killed_attempt_logged_is_sent_by_the_next_one(uri, tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", ATTEMPT, address, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as attempt:
        while int(attempt.stdout.readline()) < 200:
            pass
        attempt.kill()
        printed = 200 + len(attempt.stdout.readlines())
    with (tmp_path / METRICS).open("ab") as file:  # a kill that cut a line
        file.write(b'{"step": 99999, "metr')
    log = MlflowLogger(RunSpec(uri, "logs", "killed"), tmp_path, system_metrics=False)
    last = max(point.step for point in Journal(tmp_path).all_points())
    assert last >= printed - 1  # the last line of its output may be cut
    log.log_metrics(100, {"loss": -1.0})  # a repeated step
    log.log_metrics(last + 1, {"loss": last + 1})
    assert log.close(120)
    (run_id,) = runs_named(uri, "logs", "killed")
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(last + 2)]
    assert set(images(uri, run_id)) >= {f"val-step-{step:06d}.png" for step in range(0, 200, 10)}


def test_a_full_disk_is_reported_and_training_goes_on(uri, tmp_path, capsys):
    (tmp_path / METRICS).symlink_to("/dev/full")
    log = MlflowLogger(RunSpec(uri, "logs", "full"), tmp_path, system_metrics=False)
    for step in range(3):
        log.log_metrics(step, {"loss": step})
    (tmp_path / METRICS).unlink()
    log.log_metrics(3, {"loss": 3})
    assert not log.close()
    warnings = capsys.readouterr().err
    assert warnings.count("warning:") == warnings.count("cannot be written (No space left on device)") == 1
    (run_id,) = runs_named(uri, "logs", "full")
    assert history(uri, run_id, "loss") == [(3, 3.0)]


def test_a_run_deleted_meanwhile_is_created_again_with_everything(uri, tmp_path):
    log = MlflowLogger(RunSpec(uri, "logs", "deleted"), tmp_path, system_metrics=False)
    log.log_metrics(0, {"loss": 0.0})
    log.log_image("val", IMAGE, 0)
    assert log.flush(60)
    (first,) = runs_named(uri, "logs", "deleted")
    tracking.client(uri).delete_run(first)
    log.log_metrics(1, {"loss": 1.0})
    assert not log.flush(60)
    wait_for(log.flush)
    assert log.close()
    (second,) = runs_named(uri, "logs", "deleted")
    assert second != first
    assert history(uri, second, "loss") == [(0, 0.0), (1, 1.0)]
    assert images(uri, second) == ["val-step-000000.png"]


def test_an_image_that_cannot_be_read_holds_no_other_back(uri, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    log = MlflowLogger(RunSpec(uri, "logs", "broken"), tmp_path / "journal", system_metrics=False)
    log.log_image("val", tmp_path / "broken.png", 0)
    log.log_image("val", IMAGE, 1)
    assert log.close()
    (run_id,) = runs_named(uri, "logs", "broken")
    assert images(uri, run_id) == ["val-step-000001.png"]
    assert "cannot be logged" in capsys.readouterr().err
