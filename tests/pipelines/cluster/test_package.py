"""What ``denoise submit`` sends, and what it refuses to send."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from denoise.errors import UserError
from pipelines.cli.common import configuration
from pipelines.cluster.jobs import job_local_settings, refuse_passwords, settings_of
from pipelines.cluster.package import SECRETS
from tests.pipelines.cli_helpers import sentence

PASSWORD = "TOPSECRET"
ADDRESS = f"postgresql://me:{PASSWORD}@db.example/mlflow"
SECRET_FILES = (
    *(".env", ".env.local", "prod.env", "sub/.env", ".envrc", "secrets.yaml", ".secrets.toml"),
    *(".aws/credentials", ".aws/config", "sub/.aws/credentials", ".config/gcloud/application_default_credentials.json"),
    *(".ssh/id_rsa", ".ssh/config", ".ray/auth_token", ".kube/config", ".docker/config.json", ".gnupg/secring.gpg"),
    *(".netrc", "_netrc", ".pgpass", ".git-credentials", ".pypirc", ".npmrc", ".boto", ".bash_history"),
    *("server.pem", "tls/server.key", "id_rsa", "id_ed25519", "id_ecdsa.old", "me.p12", "me.pfx", "store.jks"),
    *(".dvc/config.local", ".dvc/tmp/lock", ".dvc/cache/files/md5/00/11", ".git/config", ".venv/bin/python"),
    *(
        "mlflow.db",
        "mlflow.db-wal",
        "optuna.db",
        "data/raw/a.png",
        "runs/n2n/model/model.json",
        "models/n2n/model.json",
    ),
)
CODE_FILES = (
    "params.yaml",
    "mine.yaml",
    ".dvc/config",
    "denoise/data/loader.py",
    "my/models/net.py",
    "tests/runs/a.py",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of empty configuration, made the current folder."""
    for name in CODE_FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# nothing\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dry_run(denoise_fork):
    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [*denoise_fork, "submit", "--dry-run", "--address", "http://127.0.0.1:9", *words]  # nobody answers
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == code, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done

    return run


def test_a_dry_run_lists_what_is_sent_and_no_secret_is(folder, dry_run):
    for name in SECRET_FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PASSWORD)
    document = json.loads(dry_run("--json", "--", "presets", "--json").stdout)
    assert [file["path"] for file in document["files"]] == sorted(CODE_FILES)
    assert document["bytes"] == 10 * len(CODE_FILES)
    assert document["entrypoint"] == "python -m pipelines.cli presets --json"
    text = dry_run("--", "presets").stdout
    assert all(name in text for name in CODE_FILES)
    assert not list(folder.glob("*.zip"))


def test_what_gitignore_names_is_not_sent(folder, dry_run):
    (folder / ".gitignore").write_text("/mine.yaml\n")
    files = json.loads(dry_run("--json", "--", "presets").stdout)["files"]
    assert "mine.yaml" not in {file["path"] for file in files}


@pytest.mark.parametrize(
    "file", ["params.yaml", "mine.yaml", "dvc.lock", ".dvc/config", "deep/er.json"], ids=lambda name: name
)
def test_a_configuration_file_with_a_password_is_refused(folder, dry_run, file):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(f"tracking:\n  uri: {ADDRESS}\n" if file.endswith(".yaml") else f"\nuri = {ADDRESS}\n")
    message = sentence(dry_run("--", "presets", code=1).stderr)
    assert f"line 2 of {file} holds a password" in message
    assert "PGPASSWORD" in message


@pytest.mark.parametrize(
    "words",
    [
        [f"tracking.uri={ADDRESS}"],
        ["-S", f"tracking.uri={ADDRESS}"],
        [f"-Stracking.uri={ADDRESS}"],
        ["--set", f"tune.storage={ADDRESS}"],
        [f"--set=tune.storage=postgresql://me:a b{PASSWORD}@db/optuna"],
        [f"data.url=https://shards.example/d?X-Amz-Signature={PASSWORD}"],
        ["--mirror", f"https://me:{PASSWORD}@mirror.example/d"],
    ],
)
def test_a_command_with_a_password_is_refused(words):
    with pytest.raises(UserError, match="holds a password, which everyone who sees the cluster's jobs") as error:
        refuse_passwords(["train", *words])
    assert PASSWORD not in str(error.value)


def test_addresses_without_passwords_are_sent(folder, dry_run):
    words = ["tracking.uri=http://mlflow:5000", "tune.storage=postgresql://denoise@db:5432/optuna", "data.url=s3://b/d"]
    assert dry_run("--", "train", *words, "ray.storage=s3://b/r").stderr == ""


def test_settings_are_seen_in_every_form(folder):
    there = ["ray.storage=s3://bucket/runs", "--set=tracking.uri=http://mlflow:5000"]
    assert job_local_settings(["train", *there], configuration) == []
    assert job_local_settings(["train", *there, "-Sray.storage=mine"], configuration) == ["ray.storage=mine"]
    words = ["tune", "n2v", "-S", "a=1", "--set=b=2", "-Sc=3", "--set", "d=4", "e=5", "--name=x", "--trials", "3"]
    assert settings_of(words) == ["e=5", "a=1", "b=2", "c=3", "d=4"]


def test_a_file_that_cannot_be_packed_is_one_sentence(folder, dry_run):
    Path(os.fsdecode(os.fsencode(folder) + b"/a\xff.py")).write_text("")
    assert "cannot be packed" in sentence(dry_run("--", "presets", code=1).stderr)


def test_the_project_itself_can_be_sent(denoise_fork):
    """None of its own configuration looks like a password, and none of its code like a secret."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [*denoise_fork, "submit", "--dry-run", "--json", "--", "presets"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sent = {file["path"] for file in json.loads(done.stdout)["files"]}
    for package in ("denoise", "pipelines"):
        code = {path.relative_to(root).as_posix() for path in (root / package).rglob("*.py")}
        assert code <= sent
    assert {"params.yaml", "pyproject.toml", "constraints.txt", "dvc.yaml"} <= sent
    assert len(SECRETS) > 40
