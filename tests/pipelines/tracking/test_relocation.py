"""A project that was moved or copied writes where it is now, finds its models there, and leaves the original alone."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from denoise.denoiser import load_denoiser
from denoise.errors import UserError
from pipelines.registry import versions as registry
from pipelines.tracking import lifecycle
from pipelines.tracking.client import client, database_in_use, resolve_uri
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import journal_folder
from pipelines.tracking.runs import RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import images, log_a_model

IMAGE = np.zeros((4, 6, 3), np.uint8)
CHAMPION = "models:/denoise-gauss25@champion"


def uri_of(project: Path) -> str:
    return resolve_uri("sqlite:///mlflow.db", project)


def spec_of(project: Path, name: str) -> RunSpec:
    return RunSpec(uri_of(project), "helpers", name)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a champion, and with a run whose journal MLflow lacks an image of."""
    project = tmp_path_factory.mktemp("template") / "project"
    project.mkdir()
    uri = uri_of(project)
    run_id, model = log_a_model(uri, project / "models", "gauss25")
    row = registry.register(uri, model, None, run_id)
    client(uri).set_registered_model_alias(row["name"], "champion", row["version"])
    get_or_create_run(spec_of(project, "late"))
    folder = project / "runs" / "ray" / "late" / "journal"
    journal = Journal(folder)
    journal.start_attempt(spec_of(project, "late"))
    journal.append_image("validation", IMAGE, 10)
    journal.set_status("FINISHED")
    return project


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(database: Path) -> str:
    """Return all that a database holds, less where data sets were read."""
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join(line for line in connection.iterdump() if 'INTO "datasets"' not in line)


@pytest.mark.parametrize("name", ["new", "50% of #1 ?", "mlartifacts"])
def test_a_copy_has_all_and_never_touches_the_original(template, tmp_path, name, capsys):
    before = everything_in(template)
    copy = tmp_path / name
    shutil.copytree(template, copy)
    uri = uri_of(copy)
    assert copy in registry.model_folder(uri, CHAMPION).parents
    assert load_denoiser(registry.model_folder(uri, CHAMPION)).noise == "gauss25"
    assert capsys.readouterr().err.count("note: ") == 1
    assert str(template) not in texts(copy / "mlflow.db")
    new = get_or_create_run(spec_of(copy, "new"))
    (tmp_path / "note.txt").write_text("a note")
    client(uri).log_artifact(new, str(tmp_path / "note.txt"))
    assert list(copy.glob(f"mlartifacts/{new}/artifacts/note.txt"))
    synced = lifecycle.sync(journal_folder(str(copy / "runs" / "ray"), "late"))
    assert (synced.images, images(uri, synced.run_id)) == (1, ["validation-step-000010.png"])
    assert everything_in(template) == before


def test_a_moved_project_does_not_make_its_old_folder_again(template, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(template, old)
    client(uri_of(old))
    old.rename(new)
    assert new in registry.model_folder(uri_of(new), CHAMPION).parents
    lifecycle.sync(journal_folder(str(new / "runs" / "ray"), "late"))
    log_a_model(uri_of(new), new / "models", "gauss50")
    assert not old.exists()


def test_a_journal_of_an_earlier_version_goes_with_its_project(template, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(template, copy)
    journal = Journal(copy / "runs" / "ray" / "late" / "journal")
    file = journal.folder / "run.json"
    lines = [line for line in file.read_text().splitlines(True) if not line.startswith(' "folder"')]
    file.write_text("".join(lines))
    assert journal.run_spec().uri == uri_of(copy)


def test_a_journal_that_left_its_project_still_belongs_to_it(template, tmp_path):
    shutil.copytree(template / "runs", tmp_path / "elsewhere")
    assert Journal(tmp_path / "elsewhere" / "ray" / "late" / "journal").run_spec().uri == uri_of(template)


def test_a_database_without_its_images_and_models_is_refused(template, tmp_path):
    before = everything_in(template)
    shutil.copy(template / "mlflow.db", tmp_path)
    with pytest.raises(UserError, match=r"without its images and models: copy .*/mlartifacts to .*/mlartifacts"):
        get_or_create_run(spec_of(tmp_path, "new"))
    assert everything_in(template) == before
    assert texts(tmp_path / "mlflow.db") == texts(template / "mlflow.db")


def test_a_database_that_is_in_use_under_another_path_stays_as_it_is(template, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(template, old)
    with database_in_use(uri_of(old)):  # as by a run in a container
        old.rename(new)
        before = texts(new / "mlflow.db")
        with pytest.raises(UserError, match=rf"in use where it is called {old}/mlflow.db"):
            registry.list_models(uri_of(new))
        assert texts(new / "mlflow.db") == before
    assert registry.list_models(uri_of(new))
    assert str(old) not in texts(new / "mlflow.db")


def test_another_path_of_the_same_folder_is_no_move(template, tmp_path):
    before = texts(template / "mlflow.db")
    (tmp_path / "link").symlink_to(template)
    assert registry.list_models(f"sqlite:///{tmp_path / 'link'}/mlflow.db")
    assert texts(template / "mlflow.db") == before


def test_only_what_moved_is_changed(template, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(template, copy)
    others = ["mlflow-artifacts:/7", "s3://bucket/mlartifacts", f"{template.as_uri()}/mlartifacts-2", "/data/mlruns/3"]
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection, connection:
        for number, location in enumerate(others, 100):
            connection.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace) "
                "VALUES (?, ?, ?, 'active', 'default')",
                (number, f"experiment {number}", location),
            )
    api = client(uri_of(copy))
    assert [api.get_experiment(str(number)).artifact_location for number, _ in enumerate(others, 100)] == others
