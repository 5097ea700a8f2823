"""Passwords of addresses and keys of AWS are in nothing that commands write, print or pass as an argument."""

import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
import yaml

from tests.pipelines.cli_helpers import sentence
from tests.pipelines.mlflow_helpers import free_port
from tests.pipelines.postgres_helpers import Postgres
from tests.pipelines.s3_helpers import s3_variables


class Secrets:
    """Random passwords by what they open, and where they were seen."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.arguments: set[str] = set()

    def new(self, name: str) -> str:
        """Return a new password."""
        self.words[name] = secrets.token_hex(12)
        return self.words[name]

    def found_in(self, data: bytes) -> list[str]:
        return [name for name, word in self.words.items() if word.encode() in data]

    def found_below(self, *folders: Path) -> dict[str, list[str]]:
        """Return the names of the passwords in each file."""
        found = {}
        for file in (path for folder in folders for path in folder.rglob("*")):
            with suppress(OSError):  # a socket, or a file that is gone meanwhile
                if names := self.found_in(str(file).encode() + (file.read_bytes() if file.is_file() else b"")):
                    found[str(file)] = names
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look again and again for passwords among the arguments of all processes of this machine."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                for file in Path("/proc").glob("[0-9]*/cmdline"):
                    with suppress(OSError):
                        self.arguments.update(self.found_in(file.read_bytes()))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture
def hidden() -> Iterator[Secrets]:
    """Secrets that no process has as an argument while the test runs."""
    hidden = Secrets()
    with hidden.watched():
        yield hidden
    assert hidden.arguments == set()


@pytest.fixture
def denoise_here(project, denoise_fork, one_host, hidden):
    """Run a command in the project, on the shared Ray, and look for passwords in what it prints."""

    def run(*words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**one_host.environment, **one_host.variables, **variables}
        environment["DENOISE_CACHE"] = str(project / "cache")
        done = subprocess.run(
            [*denoise_fork, *words], cwd=project, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert hidden.found_in((done.stdout + done.stderr).encode()) == []
        return done

    return run


def write_params(project: Path, **groups: object) -> None:
    """Add to params.yaml."""
    tree = yaml.safe_load((project / "params.yaml").read_text())
    for name, value in groups.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    (project / "params.yaml").write_text(yaml.safe_dump(tree))


def with_login(address: str, password: str) -> str:
    return address.replace("://", f"://me:{password}@", 1)


@pytest.fixture
def addresses(project, server, serve, hidden, small_shards) -> dict[str, str]:
    """Put addresses with passwords into params.yaml: an MLflow and shards that answer, a mirror that does not."""
    server.start()
    site = serve(project / "data" / "shards")
    write_params(
        project,
        data={
            "test": ["small"],
            "allow_overlap": ["small"],
            "url": with_login(site.url.rstrip("/"), hidden.new("data.url")),
            "mirror": f"{with_login(site.url, hidden.new('data.mirror'))}none?token={hidden.new('the mirror query')}",
        },
        tracking={"uri": with_login(server.address, hidden.new("tracking.uri")), "experiment": "secrets"},
        ray={"workers": 1, "gpu": "no"},
        net="cnn5",
        compare=["n2n"],
    )
    (project / "data" / "shards" / "test").mkdir()
    (project / "data" / "shards" / "test" / "small").symlink_to(small_shards)


def test_training_evaluation_and_report_leave_no_password(
    project, denoise_here, addresses, hidden, one_host, mlflow_server, tmp_path_factory
):
    write_params(project, tune={"storage": f"postgresql://me:{hidden.new('tune.storage')}/pa@ss@db.example/optuna"})
    trained = denoise_here("train", "--out", "models/n2n", "--json")
    assert "***@127.0.0.1" in trained.stderr  # the address itself is shown
    run_id = json.loads(trained.stdout)["run_id"]
    denoise_here("evaluate", "models/n2n", "--out", "evaluation/n2n", "--json")
    denoise_here("report")
    denoise_here("data", "show", "small")
    denoise_here("data", "verify", "small", "--json")
    (row,) = json.loads(denoise_here("runs", "list", "--json").stdout)
    assert row["missing"] == {"metrics": 0, "images": 0, "model": False, "status": False}  # with today's password
    denoise_here("runs", "sync", "--json")
    assert "keeps no password" in sentence(
        denoise_here("runs", "sync", "-S", "tracking.uri=http://127.0.0.1:1", code=1).stderr
    )
    denoise_here("fetch", "kodak", code=1)
    denoise_here("sweeps", "list", code=1)
    denoise_here("train", "--local", "--name", "local")
    sentence(denoise_here("submit", "--dry-run", "--", "train", code=1).stderr)

    from pipelines.tracking.client import client

    run = client(mlflow_server.uri).get_run(run_id)
    assert run.data.params["data.url"].startswith("http://***@127.0.0.1:")
    assert str(project / "params.yaml") in hidden.found_below(project)  # it would be found
    (project / "params.yaml").unlink()
    databases = tmp_path_factory.getbasetemp() / "mlflow"
    assert hidden.found_below(project, databases, one_host.ray_folder) == {}


@pytest.mark.slow
def test_a_sweep_leaves_no_password_and_resumes_with_that_of_today(
    project, denoise_here, addresses, hidden, one_host, tmp_path_factory
):
    sweep = {"title": "a test", "space": {"train.lr": {"choice": [1e-3, 1e-4]}}, "sampler": "grid", "trials": 2}
    (project / "mine.yaml").write_text(yaml.safe_dump({**sweep, "images": 16, "evaluations": 2}))
    with Postgres("127.0.0.1") as postgres:
        hidden.words["tune.storage"] = postgres.password
        write_params(project, tune={"storage": postgres.new()})
        document = json.loads(denoise_here("tune", "mine.yaml", "--name=secrets", "--json").stdout)
        assert document["trials"] == {"COMPLETE": 2, "PRUNED": 0, "FAIL": 0}
        again = denoise_here("tune", "--resume", "secrets", "--json")
        assert json.loads(again.stdout)["best"] == document["best"]
        assert json.loads(denoise_here("sweeps", "list", "--json").stdout)[0]["name"] == "secrets"
        data = postgres.folder / "data"
        (project / "params.yaml").unlink()
        databases = tmp_path_factory.getbasetemp() / "mlflow"
        assert hidden.found_below(project, databases, one_host.ray_folder, data) == {}


@pytest.mark.slow
def test_the_page_of_mlflow_has_no_password_among_its_arguments(project, denoise_fork, hidden):
    """The server is several processes, whose arguments all users of the machine can read."""
    with Postgres("127.0.0.1") as postgres:
        hidden.words["tracking.uri"] = postgres.password
        write_params(project, tracking={"uri": postgres.new()})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*denoise_fork, "ui", "--port", str(free_port())], **pipes) as process:
            line = process.stdout.readline()
            process.terminate()
            _, messages = process.communicate(timeout=60)
        assert "***@127.0.0.1" in line, messages
        assert hidden.found_in((line + messages).encode()) == []


def test_ray_shows_the_command_of_a_driver_without_passwords(one_host, hidden):
    """A driver with a password among its own arguments is seen by all users of a cluster."""
    code = "from denoise.config import Config\nfrom pipelines.cluster.connect import ray_cluster\n"
    code += "with ray_cluster(Config()):\n    pass\n"
    word = f"tracking.uri=postgresql://me:{hidden.new('the argument')}@db.example/mlflow"
    environment = {**one_host.environment, **one_host.variables}
    try:
        subprocess.run([sys.executable, "-c", code, "train", word], env=environment, check=True, timeout=100)
    finally:
        hidden.arguments.clear()  # this process has it as it was given
    headers = {"Authorization": f"Bearer {Path(environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    jobs = requests.get(f"{one_host.url}/api/jobs/", headers=headers, timeout=30).text
    assert "denoise train 'tracking.uri=postgresql://***@db.example/mlflow'" in jobs
    assert hidden.found_in(jobs.encode()) == []


def test_ray_tune_copies_no_key_of_aws(monkeypatch):
    from ray.tune.execution import class_cache

    from pipelines.training.side_by_side import _keep_keys_of_aws

    class Trainable:
        """Anything."""

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "TOPSECRET")
    _keep_keys_of_aws()
    actor = class_cache._ActorClassCache().get(Trainable)
    assert "TOPSECRET" not in str(actor._default_options)


@pytest.mark.slow
def test_a_sweep_on_this_machine_reads_s3_with_keys_that_ray_does_not_log(project, denoise_fork, s3, hidden):
    """Ray's own workers inherit the keys; nothing else shows them, and Ray's token is private from the start."""
    sweep = {"title": "a test", "space": {"train.lr": {"choice": [1e-3, 1e-4]}}, "sampler": "grid", "trials": 2}
    (project / "mine.yaml").write_text(yaml.safe_dump({**sweep, "images": 16, "evaluations": 2}))
    write_params(project, ray={"workers": 1, "gpu": "no", "storage": "s3://bucket/runs"}, net="cnn5")
    ray_folder = Path(f"/tmp/ray-{secrets.token_hex(2)}")  # Ray's sockets have a limit of 107 characters
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= s3_variables(s3.address) | {"HOME": str(project), "RAY_TMPDIR": str(ray_folder)}
    environment |= {name: hidden.new(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    try:
        command = [*denoise_fork, "tune", "mine.yaml", "--name=keys", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["trials"] == {"COMPLETE": 2, "PRUNED": 0, "FAIL": 0}
        assert "runs/keys-000/checkpoints" in str(s3.client().list_objects_v2(Bucket="bucket"))
        assert hidden.found_in((done.stdout + done.stderr).encode()) == []
        assert len(list(ray_folder.rglob("*.log"))) > 3
        assert hidden.found_below(project, ray_folder) == {}
        token = project / ".ray" / "auth_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
