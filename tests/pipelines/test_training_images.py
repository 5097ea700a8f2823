"""A model is not scored on an image that it was trained on, whatever that image is called."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from denoise.denoiser import load_denoiser
from denoise.model_files import TRAINING_IMAGES, model_digest
from tests.pipelines.cli_helpers import sentence

SMALL = ["net=cnn5", "train.steps=2", "train.batch_size=2", "train.crop=16"]
ALLOWED = ["-S", "data.allow_overlap=own"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, denoise_fork, small_shards, small_images, photographs):
    """A project with a model, and as test set ``own`` one of its training images, in another format, and another."""
    from denoise.images.io import DecodedImage, read_image, write_image

    folder = tmp_path_factory.mktemp("trained")
    for split in ("train", "val"):
        shutil.copytree(small_shards, folder / "data/shards" / split / "small")
    (folder / "params.yaml").write_text("data: {train: small, val: small, test: []}\ntrain: {precision: fp32}\n")
    (folder / "images").mkdir()
    write_image(folder / "images/seen.png", DecodedImage(read_image(small_images / "1-rocket.jpg").pixels))
    write_image(folder / "images/new.png", DecodedImage(read_image(photographs / "chelsea.png").pixels[:64, :64]))
    run(denoise_fork, folder, "train", "--local", "--name=own", *SMALL)
    run(denoise_fork, folder, "shard", "own", "--from=images", "--split=test")
    return folder


@pytest.fixture
def project(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "project")


def run(denoise_fork, folder, *arguments, code=0):
    done = subprocess.run(
        [*denoise_fork, *arguments], capture_output=True, text=True, cwd=folder, timeout=100, env=dict(os.environ)
    )
    assert done.returncode == code, done.stderr
    return sentence(done.stderr) if code else done


@pytest.mark.parametrize("model", ["runs/own/model", "runs/own/checkpoints/step-00000002"])
def test_a_model_is_not_scored_on_a_training_image_of_another_set(project, denoise_fork, model):
    message = run(denoise_fork, project, "evaluate", model, "--data", "own", code=1)
    assert "1 images of the test set own are among the images that this model was trained on" in message
    assert "(for example seen.png)" in message
    assert "data.allow_overlap=own" in message
    run(denoise_fork, project, "evaluate", model, "--data", "own", *ALLOWED)


def test_a_resumed_run_names_its_images_and_a_damaged_list_is_one_sentence(project, denoise_fork):
    images = project / "runs/own/model" / TRAINING_IMAGES
    before = images.read_bytes()
    run(denoise_fork, project, "train", "--local", "--name=own", *SMALL, "train.steps=3")
    assert images.read_bytes() == before
    images.write_bytes(before[:-1])
    message = run(denoise_fork, project, "evaluate", "runs/own/model", "--data", "own", code=1)
    assert f"{TRAINING_IMAGES} is damaged" in message


def test_a_model_of_0_1_0_is_scored(project, denoise_fork):
    old = Path(__file__).parents[1] / "denoise/written_by_0_1_0/model"
    run(denoise_fork, project, "evaluate", old, "--data", "own")
    (project / "runs/own/model" / TRAINING_IMAGES).unlink()
    run(denoise_fork, project, "evaluate", "runs/own/model", "--data", "own")


def test_the_list_is_part_of_the_model(project):
    model = project / "runs/own/model"
    before = model_digest(model)
    assert load_denoiser(model).digest == before
    (model / TRAINING_IMAGES).unlink()
    assert model_digest(model) != before


def test_training_ends_with_commands_that_restore_with_its_model_and_register_it(project, denoise_fork, photographs):
    shutil.rmtree(project / "runs")
    out = "models/of mine"  # a shell needs quotes for it
    settings = ["data.test=own", *ALLOWED[1:], "tracking.uri=sqlite:///elsewhere/mlflow.db"]
    training = ["train", "--local", "--out", out, *SMALL, *settings]
    lines = run(denoise_fork, project, *training).stdout.splitlines()
    commands = [line.strip() for line in lines if line.startswith("  denoise ")]
    assert json.loads(run(denoise_fork, project, *training, "--json").stdout)["next"] == commands
    assert [shlex.split(command)[1] for command in commands] == ["restore", "evaluate", "models"]
    shutil.copy(photographs / "coffee.png", project / "noisy.png")
    for command in commands:
        last = run(denoise_fork, project, *shlex.split(command)[1:])
    assert (project / "restored.png").is_file()
    assert "denoise-gauss25 version 1: n2n" in last.stdout
    assert "dB on own" in last.stdout
    assert (project / "elsewhere/mlflow.db").is_file()
    registered = ["evaluate", "models:/denoise-gauss25/1", "--data=own", "-S", settings[-1]]
    assert "among the images that this model was trained on" in run(denoise_fork, project, *registered, code=1)


def test_an_evaluation_says_whether_it_saved_anything(project, denoise_fork):
    command = ["evaluate", "runs/own/model", "--data", "own", *ALLOWED]
    assert "nothing was saved; --out FOLDER" in run(denoise_fork, project, *command).stderr
    assert "nothing was saved" not in run(denoise_fork, project, *command, "--out", "scores").stderr
    assert list((project / "scores").rglob("scores.json"))


def test_an_evaluation_on_no_set_is_one_sentence(project, denoise_fork):
    assert "--data NAME" in run(denoise_fork, project, "evaluate", "runs/own/model", code=1)
