"""Checkpoints that lie, as a stranger's may: named as damaged in one sentence, and nothing of the user's is deleted."""

import json
import shutil

import pytest
import torch
from torch import nn

from denoise.errors import UserError
from denoise.files import file_digest, write_json
from denoise.training.checkpoint import (
    HISTORY,
    MANIFEST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    RunProgress,
    TrainState,
    damage,
    load_checkpoint,
    read_history,
    snapshot,
)
from denoise.training.checkpoint_manager import FolderStore
from tests.mutations import Victim, mutated, sentence_of


def train_state():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainState(net, optimizer)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "step-00000003"
    folder.mkdir()
    progress = RunProgress(3, "ab", [{"step": 1.0, "loss": 0.5}, {"step": 3.0, "val_psnr": None}], {"loss": 0.5}, 2)
    snapshot(train_state(), progress, {"format": 1}).write(folder)
    return folder


def sign(folder):
    """Write the manifest that fits the files."""
    write_json(folder / MANIFEST, {path.name: file_digest(path) for path in folder.iterdir() if path.name != MANIFEST})


def load(name, folder):
    return sentence_of(name, lambda: load_checkpoint(folder, train_state()))


def test_no_manifest_ends_in_a_traceback(folder, tmp_path):
    victim = Victim(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, data in mutated(manifest, *victim.names()):
        (folder / MANIFEST).write_bytes(data)
        assert load(name, folder)
    for name in (*victim.names(), "/dev/zero", "../other", ".", ""):
        write_json(folder / MANIFEST, {**manifest, name: "0" * 64})
        assert "which no checkpoint has" in damage(folder)
    assert victim.is_there()


@pytest.mark.parametrize("file", [STATE, HISTORY])
def test_no_signed_file_ends_in_a_traceback(folder, file):
    lines = (folder / file).read_text()
    tree = json.loads(lines if file == STATE else lines.splitlines()[0])
    for name, data in list(mutated(tree))[::3]:
        (folder / file).write_bytes(data.replace(b"\n", b""))
        sign(folder)
        load(name, folder)


@pytest.mark.parametrize("file", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", b"x" * 100])
def test_no_signed_tensors_end_in_a_traceback(folder, file, data):
    (folder / file).write_bytes(data)
    sign(folder)
    assert f"checkpoint {folder} does not fit this run" in load(file, folder) or (file, data[8:]) == (OPTIMIZER, b"{}")


def test_a_checkpoint_of_another_net_is_one_sentence(folder):
    net = nn.Linear(3, 2)
    with pytest.raises(UserError, match="does not fit this run"):
        load_checkpoint(folder, TrainState(net, torch.optim.Adam(net.parameters())))


def test_an_intact_checkpoint_is_loaded(folder):
    assert load_checkpoint(folder, train_state()).step == 3
    assert [row["step"] for row in read_history(folder)] == [1.0, 3.0]


def test_only_checkpoints_are_listed_and_deleted(folder, tmp_path):
    store, mine = FolderStore(tmp_path), ["step-by-step", "step-1", "photos", ".step-notes"]
    for name in mine:
        shutil.copytree(folder, tmp_path / name)
    assert store.names() == [folder.name]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".step-00000001.going").symlink_to(tmp_path / "elsewhere")
    store.clean()
    store.delete(folder.name)
    assert store.names() == []
    assert all((tmp_path / name).is_dir() for name in (*mine, "elsewhere"))
