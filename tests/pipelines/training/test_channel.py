"""Messages between the driver of a run and its workers, without Ray."""

import subprocess
import sys

from denoise.config import Config
from pipelines.cluster import connect
from pipelines.training import channel
from pipelines.training.channel import CapacityNotice, RunChannel


def test_messages_and_validations_are_taken_once_and_the_latest_metrics_stay():
    run = RunChannel()
    run.put_message("workers: 2")
    run.put_metrics({"step": 2.0}, validated=True)
    run.put_metrics({"step": 3.0}, validated=False)
    assert run.take() == ({"step": 3.0}, ["workers: 2"], [{"step": 2.0}])
    assert run.take() == ({"step": 3.0}, [], [])


def test_the_first_reason_of_a_failure_stays():
    run = RunChannel()
    run.end("a shard is damaged", 0)
    run.end("", 7)
    assert run.ending() == ("a shard is damaged", 7)


def test_a_run_without_room_says_so_once_until_it_advances(monkeypatch, capfd):
    workers = iter([1, 1, 2])
    monkeypatch.setattr(channel, "CAPACITY_SECONDS", 0.0)
    monkeypatch.setattr(connect, "worker_capacity", lambda config, gpu: next(workers))
    notice = CapacityNotice("n2n", Config(), gpu=False)
    for advanced in (False, False, True, False):
        notice.check(advanced)
    assert capfd.readouterr().err.count("n2n: waits, as the cluster has room for 1 of 2 workers") == 2


def test_the_actors_import_next_to_nothing():
    code = "import sys, pipelines.training.channel; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "ray", "mlflow", "optuna", "rich", "denoise.config"} & set(modules)
