"""The estimate at the end of a training on noisy images without clean ones."""

import json
import subprocess

import pytest

from denoise.config import load_config
from pipelines.training.estimate import estimate_after_training
from tests.pipelines.training.test_noise_check import write

KEYS = ["data.train=mine", "data.val=[]", "data.test=[]", "train.steps=2", "train.crop=32", "train.batch_size=2"]


@pytest.fixture
def train(project, denoise_fork, call):
    """A function that trains on the images of ``mine`` for two steps, and returns what it answers."""

    def run(*words):
        call("denoise", "shard", "mine", "--from", "mine", cwd=project)
        done = subprocess.run(
            [*denoise_fork, "train", "--local", *KEYS, "data.colour=grey", *words],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_line_says_how_good_the_model_is(project, train):
    write(project / "mine", correlated=False)
    said = train("method=n2v", "noise=none")
    assert "PSNR estimated as " in said
    assert "of mine, which it was trained on, by SURE, measured noise, if the noise has zero mean" in said
    document = json.loads(train("method=n2v", "noise=none", "--json"))
    assert document["estimate"]["estimate"]["images_used"] == 4
    assert "psnr" not in document["estimate"]


def test_synthetic_noise_needs_no_estimate(project, train):
    write(project / "mine", correlated=False)
    assert "estimated" not in train("method=n2n", "noise=gauss25")


def test_what_goes_wrong_is_no_failure_of_the_training(tmp_path):
    config = load_config(tmp_path / "params.yaml", ["noise=none", f"data.root={tmp_path}"])
    found = estimate_after_training(config, tmp_path / "model")
    assert found is not None
    assert "model" in found["failure"]
