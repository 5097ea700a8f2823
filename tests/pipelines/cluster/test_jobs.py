"""Commands sent to a real cluster through Ray's Jobs API."""

import json
import signal
import socket
import subprocess

import pytest

from pipelines.cli.common import configuration
from pipelines.cluster.jobs import ADDRESS, dashboard_address, job_local_settings, job_name
from tests.pipelines.cli_helpers import sentence


@pytest.fixture
def submit(one_host, denoise_fork, project):
    def run(*words, code=0, **environment):
        return one_host.run(*denoise_fork, "submit", "--address", one_host.url, *words, code=code, **environment)

    return run


def test_a_command_is_followed_to_its_end_with_the_parameters_of_this_folder(submit, project):
    (project / "params.yaml").write_text("data: {train: [unmade]}\n")
    done = submit("--", "train", code=1)
    assert "the train split of unmade is not in data/shards" in done.stdout  # and not the shards: data/ stays here
    message = sentence(done.stderr)
    assert "ended FAILED" in message
    assert "ray job logs" in message
    assert "ray.storage=runs/ray, tracking.uri=sqlite:///mlflow.db" in done.stderr
    done = submit("--json", "--", "presets", "r2r-bsd68-sigma25", "--json")
    document = json.loads(done.stdout)
    assert document["state"] == "SUCCEEDED"
    assert document["job"].startswith("presets-r2r-bsd68-sigma25-")
    assert "93125" in done.stderr


def test_a_name_can_be_used_once(submit):
    assert submit("--no-wait", "--name", "mine", "--", "presets").stdout == "mine\n"
    assert "a job mine already exists" in sentence(submit("--no-wait", "--name", "mine", "presets", code=1).stderr)


def test_a_folder_that_is_too_large_is_an_error(submit, project):
    with (project / "images.bin").open("wb") as file:
        file.truncate(150 << 20)
    assert "at most 100 MiB" in sentence(submit("--", "presets", code=1).stderr)


def test_ctrl_c_leaves_the_job_running(one_host, denoise_at_a_terminal, project):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a mirror that never answers
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = ["--address", one_host.url, "--name", "long", "--", "fetch", "kodak", "--mirror", mirror]
        command = [*denoise_at_a_terminal, "submit", *words]
        with subprocess.Popen(command, env=one_host.environment, **pipes) as process:
            silent.accept()
            process.send_signal(signal.SIGINT)
            _, messages = process.communicate(timeout=100)
        assert process.returncode == 130
        assert "left running; to see it: ray job logs --follow" in messages
        status = one_host.run("ray", "job", "status", "--address", one_host.url, "long")
        assert "RUNNING" in status.stdout + status.stderr
        one_host.run("ray", "job", "stop", "--address", one_host.url, "long")


@pytest.mark.parametrize(
    ("words", "environment", "code", "message"),
    [
        (["--", "trian"], {}, 2, "did you mean train"),
        (["--", "models", "lst"], {}, 2, "did you mean list"),
        (["--", "submit", "--", "train"], {}, 2, "submit is not a command"),
        (["--address", "http://127.0.0.1:9", "--", "presets"], {}, 1, "cannot be reached"),
        (["--address", "127.0.0.1:9", "--", "presets"], {}, 1, "write http://HOST:8265"),
        (["--", "presets"], {"RAY_AUTH_MODE": "disabled"}, 1, "requires a token"),
    ],
)
def test_a_mistake_is_one_sentence(submit, words, environment, code, message):
    assert message in sentence(submit(*words, code=code, **environment).stderr)


def test_the_address_is_the_given_one_or_that_of_rays_variable(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv(ADDRESS, "http://head:8265/")
    assert dashboard_address(None) == "http://head:8265"
    assert dashboard_address("https://other") == "https://other"


def test_names_say_what_runs_and_differ():
    first, second = (job_name(["tune", "my spaces/a.yaml", "train.lr=1", "--trials", "3"]) for _ in range(2))
    assert first.startswith("tune-my-spaces-a.yaml-")
    assert first != second


def test_settings_that_name_files_in_the_jobs_folder_are_found(project):
    assert job_local_settings(["train", "--inject", "kill:rank=1,step=3"], configuration) == [
        "ray.storage=runs/ray",
        "tracking.uri=sqlite:///mlflow.db",
    ]
    there = ["ray.storage=s3://bucket/runs", "tracking.uri=http://mlflow:5000"]
    assert job_local_settings(["train", *there], configuration) == []
    assert job_local_settings(["tune", "n2v", *there, "tune.storage=journal:sweeps.log"], configuration) == [
        "tune.storage=journal:sweeps.log"
    ]
    shared = ["ray.storage=/shared/runs", "tracking.uri=sqlite:////shared/mlflow.db"]
    assert job_local_settings(["train", *shared], configuration) == []
    assert job_local_settings(["presets"], configuration) == []
