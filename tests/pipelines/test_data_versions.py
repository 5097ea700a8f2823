"""Data sets in a git checkout of the project: what is the user's survives DVC, and old versions come back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from denoise.files import file_digest
from denoise.model_files import read_card
from tests.pipelines.s3_helpers import s3_variables

BIN = Path(sys.executable).parent
SMALL = ["net=cnn5", "train.steps=2", "train.crop=32", "train.batch_size=2", "train.eval_every=2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory, call, copy_of_the_project):
    """A checkout whose data have been made."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("versions") / "project")
    call("dvc", "repro", "versions", cwd=folder)
    commit(call, folder, "data")
    return folder


def commit(call, folder, message):
    call("git", "add", "-A", cwd=folder)
    call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", message, cwd=folder)


def choose(folder, *names):
    """Let the project train on these sets."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["data"]["train"] = list(names)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def files(folder):
    return {path: file_digest(path) for path in (folder / "data/shards").rglob("*.*") if path.is_file()}


def versions(folder):
    return json.loads((folder / "data/versions/train.json").read_text())


def test_sets_made_by_hand_survive_all_that_dvc_does(project, call, small_images, mirror):
    """A set of the user's own, used or not, a set that was fetched by hand, and one under the name of a known set."""
    call("denoise", "shard", "mine", "--from", str(small_images), cwd=project)
    call("denoise", "shard", "unused", "--from", str(small_images), cwd=project)
    call("denoise", "fetch", "kodak", "--mirror", str(mirror), cwd=project)
    call("denoise", "shard", "kodak", cwd=project)
    shutil.rmtree(project / "data/shards/val/samples")
    call("denoise", "shard", "samples", "--from", str(small_images), "--split", "val", cwd=project)
    before, raw = files(project), list((project / "data/raw").rglob("*.png"))
    try:
        choose(project, "samples", "mine")
        for command in (
            ["repro", "versions"],
            ["checkout", "--force", "--allow-missing"],
            ["exp", "run", "-S", "data.shard_mb=64", "-S", "data.test=[samples,kodak]", "versions"],
            ["repro", "--force", "shard@train", "shard@val", "versions"],
        ):
            call("dvc", *command, cwd=project)
            assert files(project) == before
            assert list((project / "data/raw").rglob("*.png")) == raw
        assert list(versions(project)) == ["mine", "samples"]
    finally:
        call("git", "checkout", "-q", ".", cwd=project)
        call("dvc", "checkout", "--allow-missing", cwd=project)
    assert files(project) == before


def test_stages_find_their_command_where_the_environment_is_not_activated(project):
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(project)}
    assert shutil.which("denoise", path=environment["PATH"]) is None
    done = subprocess.run([BIN / "dvc", "repro", "versions"], cwd=project, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (project / "data/versions/train.json").is_file()


@pytest.mark.slow
def test_an_old_version_of_an_own_set_comes_back(project, call, s3, small_images, tmp_path):
    """The story of docs/data.md."""
    images = shutil.copytree(small_images, tmp_path / "images")

    def make_version(number):
        call("denoise", "shard", "holiday", "--from", str(images), cwd=project)
        call("dvc", "add", "data/shards/train/holiday", cwd=project)
        call("dvc", "repro", "versions", cwd=project)
        commit(call, project, f"version {number}")
        call("git", "tag", f"v{number}", cwd=project)
        call("dvc", "push", "data/shards/train/holiday.dvc", cwd=project, **remote)
        return versions(project)

    def train(folder):
        answer = json.loads(call("denoise", "train", "--local", "--json", *SMALL, cwd=folder))
        provenance = read_card(folder / answer["model"])["provenance"]
        call("denoise", "models", "register", answer["model"], cwd=folder)
        parts = {part["name"]: part["digest"] for part in provenance["data"] if part["split"] == "train"}
        return provenance["run"], parts

    remote = s3_variables(s3.address)
    call("dvc", "remote", "add", "--force", "-d", "store", "s3://bucket/dvc", cwd=project)
    call("dvc", "remote", "modify", "store", "verify", "true", cwd=project)
    call("dvc", "remote", "modify", "store", "endpointurl", s3.address, cwd=project)
    choose(project, "samples", "holiday")
    first, first_run = make_version(1), train(project)
    next(images.iterdir()).unlink()
    second, second_run = make_version(2), train(project)
    assert first["samples"] == second["samples"]
    assert first["holiday"] != second["holiday"]
    assert first_run[0] != second_run[0]
    registry = call("denoise", "models", "list", "--json", cwd=project)

    call("git", "checkout", "-q", "v1", cwd=project)
    call("dvc", "checkout", "data/shards/train/holiday.dvc", cwd=project)
    assert train(project) == first_run == (first_run[0], first)
    assert call("denoise", "models", "list", "--json", cwd=project) == registry

    clone = tmp_path / "clone"
    call("git", "clone", "-q", "--branch", "v2", str(project), str(clone), cwd=tmp_path)
    call("dvc", "pull", "data/shards/train/holiday.dvc", cwd=clone, **remote)
    call("dvc", "repro", "versions", cwd=clone)
    assert versions(clone) == second
    assert train(clone) == second_run
