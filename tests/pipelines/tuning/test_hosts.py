"""A sweep on a cluster whose hosts share no disk: PostgreSQL, MLflow and S3 hold all of it, and a host fails."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from pipelines.tracking.server import stop_server, wait_until_up
from tests.pipelines.conftest import PARAMS
from tests.pipelines.hosts import Hosts, possible
from tests.pipelines.mlflow_helpers import free_port
from tests.pipelines.postgres_helpers import Postgres
from tests.pipelines.s3_helpers import S3Server, s3_variables
from tests.pipelines.training.test_on_ray import wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not possible(), reason="network namespaces need root and the command ip (iproute2)"),
]

TRIALS, RUNGS, IMAGES = 5, 4, 1200
SWEEP = {
    "title": "a test",
    "config": {"net": "cnn5", "train": {"crop": 64}, "ray": {"workers": 1, "max_failures": 1}},
    "space": {"train.lr": {"float": [1e-4, 1e-2], "log": True}, "train.batch_size": {"choice": [2, 4]}},
    "trials": TRIALS,
    "evaluations": RUNGS,
    "images": IMAGES,
}


@contextmanager
def mlflow_server(uri: str, host: str, environment: dict[str, str]):
    """Start MLflow as docs/cluster.md says, and yield its address."""
    port = free_port()
    command = ["mlflow", "server", "--host", host, "--port", str(port), "--allowed-hosts", f"{host}:{port}"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", "s3://bucket/mlflow", "--workers", "1"]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        wait_until_up(server, host, port)
        yield f"http://{host}:{port}"
    finally:
        stop_server(server)


def has_worker(hosts: Hosts, number: int) -> bool:
    """Return whether a host has a process of trials."""
    lines = []
    for pid in hosts.pids(number):
        try:
            lines.append(" ".join(psutil.Process(pid).cmdline()))
        except psutil.Error:
            continue
    return any("ImplicitFunc" in line for line in lines)


def states(storage: str, name: str) -> list[str]:
    if name not in optuna.get_all_study_names(storage):
        return []
    return [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]


def test_a_sweep_waits_for_hosts_and_finishes_without_a_host_that_fails(
    tmp_path, denoise, small_shards, tmp_path_factory, monkeypatch
):
    folder = tmp_path_factory.mktemp("hosts")
    with Hosts(0, folder, own=tmp_path) as hosts, Postgres(hosts.outside, "optuna", "mlflow") as postgres:
        s3 = S3Server(hosts.outside)
        s3.start()
        try:
            for split in ("train", "val"):
                s3.fill(small_shards, "bucket", f"shards/{split}/small")
            for key, value in s3_variables(s3.address).items():
                monkeypatch.setenv(key, value)
                hosts.environment[key] = value
            hosts.environment["DENOISE_CACHE"] = str(tmp_path / "cache")
            with mlflow_server(postgres.uri("mlflow"), hosts.outside, hosts.environment) as tracker:
                sweep_with_a_failure(hosts, denoise, postgres.uri("optuna"), tracker)
        finally:
            s3.kill()


def sweep_with_a_failure(hosts: Hosts, denoise: list[str], storage: str, tracker: str) -> None:
    hosts.join()
    disk = hosts.disk(1)
    (disk / "params.yaml").write_text(PARAMS)
    (disk / "mine.yaml").write_text(yaml.safe_dump(SWEEP))
    where = [f"tracking.uri={tracker}", f"tune.storage={storage}", "ray.storage=s3://bucket/runs"]
    where += ["data.url=s3://bucket/shards"]
    options = ["--name=far", "--concurrency=2", "--json"]
    log = (hosts.folder / "tune.log").open("w+")
    driver = hosts.start(1, *denoise, "tune", "mine.yaml", *where, *options, stdout=subprocess.PIPE, stderr=log)
    try:
        wait_for(lambda: "wait until machines come" in Path(log.name).read_text() or driver.poll() is not None)
        hosts.join()
        hosts.join()
        wait_for(lambda: states(storage, "far").count("COMPLETE") >= 2 or driver.poll() is not None)
        wait_for(lambda: has_worker(hosts, 3) or driver.poll() is not None)
        hosts.kill(3)
        out, _ = driver.communicate(timeout=900)
    finally:
        driver.send_signal(signal.SIGKILL)
        log.seek(0)
    assert driver.returncode == 0, log.read()
    summary = json.loads(out)
    assert summary["trials"] == {"COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    assert states(storage, "far") == ["COMPLETE"] * TRIALS
    check_mlflow(tracker, summary)
    assert list(hosts.disk(2).glob("cache/*"))  # shards, which it took from S3
    assert not list(hosts.folder.glob("disk-*/runs/**/step-*"))  # checkpoints are in S3 alone


def check_mlflow(tracker: str, summary: dict) -> None:
    """Every trial has one finished run with each validation once, and the model of the best one is registered."""
    client = MlflowClient(tracker)
    runs = client.search_runs([client.get_experiment_by_name("denoise").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "far"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == TRIALS == len(runs) - 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in children:
        every = IMAGES // int(run.data.params["train.batch_size"]) // RUNGS
        points = client.get_metric_history(run.info.run_id, "val_psnr")
        assert sorted(point.step for point in points) == [every * rung for rung in range(1, RUNGS + 1)]
    version = client.get_model_version_by_alias("denoise-gauss25", "challenger")
    assert str(version.version) == summary["version"]
    assert {Path(entry.path).name for entry in client.list_artifacts(parent.info.run_id, "sweep")} >= {"trials.csv"}
