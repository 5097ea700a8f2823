import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from denoise.config import Config, Train, to_dict
from denoise.denoiser import load_denoiser, make_card, save_model
from denoise.errors import UserError
from denoise.files import write_folder
from denoise.methods import with_net
from denoise.nets import NetMaker
from denoise.training.checkpoint import RunProgress, TrainState, damage, load_checkpoint, snapshot
from denoise.training.optimizers import make_average

pytestmark = pytest.mark.smoke

CARD = make_card(to_dict(with_net(Config())), channels=3, run="a-run")


def trained(steps=2):
    torch.manual_seed(0)
    net = NetMaker("unet_n2n", 3, {})()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for _ in range(steps):
        net(torch.rand(1, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return TrainState(net, optimizer)


def save(folder, train_state, step):
    write_folder(folder, snapshot(train_state, RunProgress(step), CARD).write)


def test_everything_comes_back_exactly(tmp_path):
    train_state = trained()
    progress = RunProgress(2, "00ff", [{"step": 2.0, "loss": 0.5}], {"loss": 0.1}, 1)
    write_folder(tmp_path / "step-2", snapshot(train_state, progress, CARD).write)
    fresh = trained(0)
    assert load_checkpoint(tmp_path / "step-2", fresh) == progress
    assert all(torch.equal(a, b) for a, b in zip(train_state.net.parameters(), fresh.net.parameters(), strict=True))
    states = [optimizer.state_dict()["state"] for optimizer in (train_state.optimizer, fresh.optimizer)]
    assert states[0].keys() == states[1].keys()
    for index, entries in states[0].items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), states[1][index][name])


def test_the_average_becomes_the_model_and_the_weights_come_back_too(tmp_path):
    train_state = trained()
    train_state = replace(train_state, average=make_average(train_state.net, Train(ema=0.9)))
    with torch.no_grad():
        train_state.net.dec_conv1c.bias += 1
    train_state.average.update(train_state.net)
    save(tmp_path / "step-3", train_state, 3)
    fresh = trained(0)
    fresh = replace(fresh, average=make_average(fresh.net, Train(ema=0.9)))
    load_checkpoint(tmp_path / "step-3", fresh)
    assert torch.equal(fresh.net.dec_conv1c.bias, train_state.net.dec_conv1c.bias)
    assert torch.equal(fresh.model.dec_conv1c.bias, train_state.model.dec_conv1c.bias)
    model = load_denoiser(tmp_path / "step-3").net.dec_conv1c.bias
    assert torch.allclose(model, train_state.net.dec_conv1c.bias - 0.9)


def test_a_checkpoint_is_a_model(tmp_path):
    train_state = trained()
    save(tmp_path / "step-2", train_state, 2)
    denoiser = load_denoiser(tmp_path / "step-2")
    image = torch.rand(1, 3, 64, 32)
    assert (denoiser.name, denoiser.noise, denoiser.channels, denoiser.multiple) == ("n2n", "gauss25", 3, 32)
    weights = train_state.net.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in denoiser.net.state_dict().items())
    assert torch.allclose(denoiser(image), train_state.net(image).detach(), atol=1e-5)  # another layout in memory


def test_nothing_on_disk_is_a_pickle(tmp_path):
    train_state = trained()
    save(tmp_path / "step-2", train_state, 2)
    assert {path.suffix for path in (tmp_path / "step-2").iterdir()} == {".json", ".jsonl", ".safetensors"}


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "manifest"])
def test_damage_is_detected(tmp_path, harm):
    newest, victim = tmp_path / "step-00000002", tmp_path / "step-00000002" / "net.safetensors"
    save(newest, trained(), 2)
    if harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif harm == "flip":
        victim.write_bytes(victim.read_bytes()[:-1] + b"\x55")
    elif harm == "remove":
        victim.unlink()
    else:
        (newest / "manifest.json").unlink()
    assert damage(newest)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(newest, trained(0))


def test_a_snapshot_does_not_change_with_further_training(tmp_path):
    train_state = trained()
    before = {name: tensor.clone() for name, tensor in train_state.net.state_dict().items()}
    copy = snapshot(train_state, RunProgress(2), CARD)
    with torch.no_grad():
        for parameter in train_state.net.parameters():
            parameter.add_(1)
    write_folder(tmp_path / "step-2", copy.write)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in load_file(tmp_path / "step-2" / "net.safetensors").items()
    )


def test_a_folder_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is no model folder"):
        load_denoiser(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(UserError, match="not a model card"):
        load_denoiser(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({**CARD, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_denoiser(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(dict(CARD)))
    with pytest.raises(UserError, match="is damaged"):
        load_denoiser(tmp_path)
    (tmp_path / "net.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="is damaged"):
        load_denoiser(tmp_path)


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path):
    """A real full disk: a tmpfs of 16 MB in a mount namespace of its own."""
    train_state = trained(0)
    probe = ["unshare", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system (root)")
    save_model(tmp_path / "size", train_state.net, CARD)
    assert (tmp_path / "size" / "net.safetensors").stat().st_size > 3_000_000
    disk = tmp_path / "disk"
    disk.mkdir()
    script = Path(__file__).with_name("fill_disk.py")
    command = f"mount -t tmpfs -o size=16m none {disk} && exec {sys.executable} {script} {disk}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the disk is full", "step-00000001", "nothing else"]
