"""Files of version 0.1.0 are still read: a model, a checkpoint, shards, and a key of params.yaml since renamed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from denoise.config import from_dict, load_config
from denoise.data.dataset import ShardedDataset
from denoise.data.shards import Shards
from denoise.denoiser import load_denoiser, read_card, save_model
from denoise.nets import NetMaker
from denoise.training.checkpoint import read_history
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
from denoise.training.loop import train

pytestmark = pytest.mark.smoke

WRITTEN = Path(__file__).parent / "written_by_0_1_0"
SHARDS, MODEL, CHECKPOINTS = WRITTEN / "shards", WRITTEN / "model", WRITTEN / "checkpoints"


def test_shards_hold_the_same_pixels():
    shards, pixels = Shards.open(SHARDS), np.load(WRITTEN / "pixels.npz")
    assert {shards.describe(index)["name"] for index in range(len(shards))} == set(pixels)
    for index in range(len(shards)):
        assert np.array_equal(shards.pixels(index), pixels[shards.describe(index)["name"]])


def test_a_model_restores_the_same_image():
    images = np.load(WRITTEN / "restored.npz")
    restored = load_denoiser(MODEL)(torch.from_numpy(images["noisy"]))
    np.testing.assert_allclose(restored.numpy(), images["restored"], atol=1e-5)


def test_a_cnn5_without_fields_is_the_one_of_then(tmp_path):
    card = json.loads((MODEL / "model.json").read_text())
    card["net"]["fields"] = card["config"]["net"]["fields"] = {}
    net = NetMaker("cnn5", 3, {"features": 64})()
    save_model(tmp_path / "old", net, card)
    old = load_denoiser(tmp_path / "old")
    assert all(torch.equal(old.net.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    assert old.card["config"]["net"] == old.card["net"] == {"name": "cnn5", "fields": {"features": 64}}
    save_model(tmp_path / "new", NetMaker("cnn5", 3, {})(), {**card, "format": 2})
    assert load_denoiser(tmp_path / "new").card["net"]["fields"] == {}


def test_a_checkpoint_resumes_with_the_same_samples_and_ends_with_the_same_weights(tmp_path):
    shutil.copytree(CHECKPOINTS, tmp_path / "checkpoints")
    images, messages = ShardedDataset([Shards.open(SHARDS)]), []
    steps_done = train(
        from_dict(read_card(MODEL)["config"]),
        train_set=images,
        val_set=images,
        folder=tmp_path,
        report=lambda metrics: None,
        checkpoints=CheckpointManager(FolderStore(tmp_path / "checkpoints"), on_message=messages.append),
    )
    last = tmp_path / "checkpoints" / "step-00000006"
    assert (steps_done, messages) == (6, ["resuming from step-00000003"])
    assert json.loads((last / "state.json").read_text())["samples"] == (WRITTEN / "samples.txt").read_text().strip()
    for row, expected in zip(read_history(last), read_history(MODEL), strict=True):
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)  # later versions add metrics
    weights, expected = load_file(last / "net.safetensors"), load_file(MODEL / "net.safetensors")
    assert weights.keys() == expected.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_old_name_of_crops_per_image_is_still_accepted(tmp_path):
    (tmp_path / "params.yaml").write_text("data: {crops_per_picture: 3}\n")
    assert load_config(tmp_path / "params.yaml").data.crops_per_image == 3
    assert load_config(None, ["data.crops_per_picture=4"]).data.crops_per_image == 4
    assert read_card(MODEL)["config"]["data"]["crops_per_picture"] == 2
    assert from_dict(read_card(MODEL)["config"]).data.crops_per_image == 2
