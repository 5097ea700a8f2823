"""The teacher of a run: found by its address, part of the run's identity by its digest."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from denoise.config import load_config
from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.model_files import model_digest
from denoise.sharding.leakage import training_images
from denoise.sharding.writer import write_shards
from pipelines.datasets.shard import find_sources
from pipelines.registry import versions
from pipelines.training.identity import code_files, run_name
from pipelines.training.inputs import training_inputs
from pipelines.training.teacher import with_teacher
from tests.pipelines.cli_helpers import sentence
from tests.pipelines.mlflow_helpers import log_a_model, make_model, shared_uri

SMALL = ["--local", "net=cnn5", "train.steps=2", "train.batch_size=2", "train.crop=16", "data.test=[]"]


def config(teacher, *overrides):
    return load_config(None, ["method=distil", "net=cnn5", f"train.teacher={teacher}", *overrides])


def test_a_run_is_named_by_the_digest_of_its_teacher_wherever_that_lies(tmp_path):
    first, second = (make_model(tmp_path / str(seed), "gauss25", seed) for seed in (1, 2))
    copy = shutil.copytree(first, tmp_path / "elsewhere")
    names = [run_name(config(folder), "data") for folder in (first, copy, second)]
    assert names[0] == names[1] != names[2]
    assert run_name(load_config(None, ["method=n2n"]), "data") == run_name(load_config(None), "data")


def test_the_code_of_the_teacher_counts(tmp_path):
    names = {path.name for path in code_files(config(make_model(tmp_path / "teacher", "gauss25")))}
    assert {"distil.py", "cnn5.py", "noise2noise.py", "unet.py"} <= names
    assert "noise2void.py" not in names


def test_a_path_holds_in_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_teacher(config("models/teacher")).train.teacher == str(tmp_path / "models/teacher")
    assert with_teacher(load_config(None)) == load_config(None)


def test_a_registered_model_is_taken_by_its_address(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = shared_uri(tmp_path_factory)
    run_id, model = log_a_model(uri, tmp_path, "gauss33")
    row = versions.register(uri, model, None, run_id)
    placed = with_teacher(config(f"models:/{row['name']}/{row['version']}", f"tracking.uri={uri}"))
    folder = Path(placed.train.teacher)
    assert folder.is_absolute()
    assert model_digest(folder) == model_digest(model)
    with pytest.raises(UserError, match="is no model: write models:/NAME@ALIAS"):
        with_teacher(config("models:/", f"tracking.uri={uri}"))


def test_a_test_set_that_the_teacher_was_trained_on_is_refused(project, photographs):
    (project / "photographs").mkdir()
    pixels = read_image(photographs / "chelsea.png").pixels[:64]
    write_image(project / "photographs" / "chelsea.png", DecodedImage(pixels))
    write_shards(project / "data/shards/test/own", find_sources(project / "photographs"), 1 << 20)
    teacher = make_model(project / "teacher", "gauss25")
    chosen = config(teacher, "data.train=small", "data.val=[]", "data.test=own")
    training_inputs(chosen)
    (teacher / "training_images.bin").write_bytes(training_images([Shards.open(project / "data/shards/test/own")]))
    with pytest.raises(UserError, match="1 images of the test set own are among the images that this model was tr"):
        training_inputs(chosen)


def test_the_card_names_the_teacher_and_a_named_run_keeps_it(project, denoise_fork):
    for seed in (1, 2):
        make_model(project / f"teacher{seed}", "gauss25", seed)

    def train(teacher, steps=2, code=0):
        command = [*denoise_fork, "train", "method=distil", f"train.teacher={teacher}", "--name", "own", *SMALL]
        done = subprocess.run(
            [*command, f"train.steps={steps}"], capture_output=True, text=True, env=dict(os.environ), timeout=100
        )
        assert done.returncode == code, done.stderr
        return done.stderr

    train("teacher1")
    card = json.loads((project / "runs/own/model/model.json").read_text())
    assert card["provenance"]["teacher"] == model_digest(project / "teacher1")
    assert "(another teacher)" in sentence(train("teacher2", steps=3, code=1))
    assert "resuming from step-00000002" in train("teacher1", steps=3)
    assert "nowhere is no model folder: it has no model.json" in sentence(train("nowhere", code=1))
