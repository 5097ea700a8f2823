"""A folder is not an address: whatever characters its name has, everything is read there and written nowhere else."""

import json
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest

from denoise.config import load_config
from denoise.errors import UserError
from pipelines.registry import versions as registry
from pipelines.storage.remote import fetch_bytes, remote, writable_remote
from pipelines.tracking.client import client, resolve_uri
from pipelines.tracking.database import sqlite_file, sqlite_uri
from pipelines.tracking.journal import Journal
from pipelines.tracking.logger import JournalReplay
from pipelines.tracking.runs import RunSpec, get_or_create_run
from pipelines.tuning.optuna_objects import open_storage, storage_exists
from tests.pipelines.mlflow_helpers import images, log_a_model, make_model

NAMES = ["with space", "lab #1", "what?now", "p%41q", "a+b&c=d;e", "Größe 日本", "new\nline", "a:b@c", "{0}[x]*'\"\\"]
ALL = "50% #1?a=b {0} ä+&:@'\""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: creating one takes seconds."""
    folder = tmp_path_factory.mktemp("what?now %41")
    client(resolve_uri("sqlite:///mlflow.db", folder))
    assert [path.name for path in folder.iterdir() if "lock" not in path.name] == ["mlflow.db"]
    return folder / "mlflow.db"


@pytest.fixture(params=[*NAMES, ALL])
def folder(request, tmp_path):
    """A folder, which after the test is still alone."""
    place = tmp_path / "parent" / request.param
    place.mkdir(parents=True)
    yield place
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize(
    "folder", ["lab #1", "new\nline", ALL], indirect=True
)  # the others take seconds and show no more
def test_runs_images_and_models_are_beside_the_database(folder, template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(template, folder)
    uri = resolve_uri("sqlite:///mlflow.db", folder)
    assert resolve_uri(uri, tmp_path) == uri
    journal, run_id = Journal(folder / "journal"), get_or_create_run(RunSpec(uri, "helpers", "a run"))
    journal.append_image("validation", np.zeros((4, 6, 3), np.uint8), 10)
    for _ in range(2):
        JournalReplay(client(uri), run_id, journal).send()
    assert images(uri, run_id) == ["validation-step-000010.png"]
    assert (folder / "mlartifacts" / run_id / "artifacts" / "images" / "validation-step-000010.png").is_file()
    run_id, model = log_a_model(uri, tmp_path / "models", "gauss25")
    row = registry.register(uri, model, None, run_id)
    stored = registry.model_folder(uri, f"models:/{row['name']}/{row['version']}")
    assert folder in stored.parents
    assert (stored / "net.safetensors").read_bytes() == (model / "net.safetensors").read_bytes()


@pytest.mark.parametrize("address", ["sqlite:///{}/optuna.db", "journal:{}/sweeps.log"])
def test_trials_are_where_the_address_says(folder, address):
    address = address.format(folder)
    assert not storage_exists(address)
    optuna.create_study(storage=open_storage(address), study_name="a sweep")
    assert storage_exists(address)
    assert {path.suffix for path in folder.iterdir()} <= {".db", ".log", ".lock"}


def test_a_relative_address_is_below_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    optuna.create_study(storage=open_storage("sqlite:///optuna.db"), study_name="a sweep")
    assert [path.name for path in folder.iterdir()] == ["optuna.db"]


@pytest.mark.parametrize("form", ["folder", "file:"])
def test_a_remote_is_the_folder(folder, tmp_path, form):
    (tmp_path / "source").write_bytes(b"shard")
    url = str(folder) if form == "folder" else folder.as_uri()
    writable_remote(url).send(tmp_path / "source", "train/set/index.json")
    assert (folder / "train" / "set" / "index.json").read_bytes() == b"shard"
    assert fetch_bytes(remote(url), "train/set/index.json") == b"shard"


def test_an_override_is_the_folder(folder):
    config = load_config(None, [f"data.url={folder}", f"data.root={folder}/data"])
    assert (config.data.url, config.data.root) == (str(folder), f"{folder}/data")


@pytest.mark.parametrize("text", ["s3://", "ftp://host/x", "file://host/share", "sqlite:///a.db"])
def test_another_address_is_refused(text):
    with pytest.raises(UserError, match=r"write s3://BUCKET/PREFIX"):
        remote(text)


def test_a_sqlite_address_means_what_it_means_to_sqlalchemy(tmp_path):
    from sqlalchemy.engine import make_url

    for name in [*NAMES, ALL]:
        file = tmp_path / name / "optuna.db"
        assert make_url(sqlite_uri(file)).database == str(file)
        assert sqlite_file(sqlite_uri(file)) == file
    assert sqlite_file("sqlite:///a.db?timeout=30") == Path("a.db")
    assert resolve_uri("sqlite:///a.db?timeout=30", tmp_path) == f"sqlite:///{tmp_path}/a.db?timeout=30"
    assert sqlite_file("postgresql://host/a.db") is None


def test_a_folder_that_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    with pytest.raises(UserError, match="its path is not UTF-8"):
        resolve_uri("sqlite:///mlflow.db", folder)
    assert list(tmp_path.rglob("*")) == [folder]


def test_commands_work_in_such_a_folder(tmp_path, small_shards, small_images, call, denoise_fork):
    project = tmp_path / ALL
    project.mkdir()
    shutil.copytree(small_images, project / "my images #2")
    shutil.copytree(small_shards, project / "data" / "shards" / "test" / "small")
    place = project / "lab #1" / "shards"

    def run(*words: str) -> str:
        return call(*denoise_fork, *words, cwd=project)

    run("shard", "mine", "--from", "my images #2", "--split", "test")
    run("data", "push", "mine", "--split", "test", "-S", f"data.url={place}")
    assert (place / "test" / "mine" / "index.json").is_file()
    shutil.rmtree(project / "data" / "shards" / "test" / "mine")
    run("data", "pull", "mine", "--split", "test", "-S", f"data.url={place}")
    make_model(project / "model 100%", "gauss25")
    assert json.loads(run("evaluate", "model 100%", "--data", "mine", "--out", "scores?", "--json"))
    run("restore", "my images #2", "-o", "restored?", "--model", "model 100%")
    assert len(list((project / "restored?").iterdir())) == len(list(small_images.iterdir()))
    assert run("models", "list") == "no models are registered yet\n"
    assert [path.name for path in tmp_path.iterdir()] == [ALL]
