"""A run's checkpoints in a folder: which are kept, and that damaged ones are skipped."""

import json
import random
import threading

import pytest
import torch

from denoise.config import Config, to_dict
from denoise.denoiser import make_card
from denoise.errors import UserError
from denoise.methods import with_net
from denoise.training.checkpoint import RunProgress, TrainState, snapshot
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore

CARD = make_card(to_dict(with_net(Config())), channels=3)


@pytest.fixture
def train_state():
    net = torch.nn.Conv2d(3, 3, 3)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.rand(1, 3, 8, 8)).mean().backward()
    optimizer.step()
    return TrainState(net, optimizer)


def save(checkpoints, train_state, *steps, scores=None):
    history = [{"step": float(step), "val_psnr": score} for step, score in (scores or {}).items()]
    for step in steps:
        rows = [row for row in history if row["step"] <= step] or [{"step": float(step)}]
        checkpoints.save(snapshot(train_state, RunProgress(step, history=rows), CARD), step, rows)
    checkpoints.wait()


def names(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def newest(tmp_path):
    messages = []
    with CheckpointManager(FolderStore(tmp_path), on_message=messages.append).newest() as folder:
        return (folder.name if folder else None), messages


def test_the_newest_and_the_best_are_kept(tmp_path, train_state):
    scores = {1: 20.0, 2: 25.0, 3: 25.0, 4: 22.0}
    save(CheckpointManager(FolderStore(tmp_path)), train_state, 1, 2, 3, 4, 5, scores=scores)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    save(CheckpointManager(FolderStore(tmp_path), keep=1), train_state, 6)
    assert names(tmp_path) == ["step-00000006"]


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert newest(tmp_path / "nowhere") == (None, [])


def harm(folder, rng):
    """Damage a checkpoint in one of the ways that disks, kills and people do."""
    victim = rng.choice(sorted(folder.iterdir()))
    data = victim.read_bytes()
    way = rng.choice(["cut", "flip", "remove", "empty", "other"])
    if way == "remove":
        victim.unlink()
    elif way == "flip":
        at = rng.randrange(len(data))
        victim.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
    else:
        size = {"cut": rng.randrange(len(data)), "empty": 0, "other": len(data)}[way]
        victim.write_bytes(rng.randbytes(size) if way == "other" else data[:size])
    return f"{way} {victim.name}"


@pytest.mark.parametrize("seed", range(50))
def test_damaged_checkpoints_are_skipped_with_one_message(tmp_path, train_state, seed):
    rng = random.Random(seed)
    save(CheckpointManager(FolderStore(tmp_path), keep=4), train_state, 3, 6, 9, 12)
    damaged = rng.randrange(1, 5)
    for step in (12, 9, 6, 3)[:damaged]:
        harm(tmp_path / f"step-{step:08d}", rng)
    name, (message,) = newest(tmp_path)
    assert name == (None if damaged == 4 else f"step-{12 - 3 * damaged:08d}")
    assert message.count("is damaged") == damaged
    assert message.endswith(f"resuming from {name or 'the beginning'}")


def test_a_damaged_checkpoint_is_deleted_after_the_next_save(tmp_path, train_state):
    save(CheckpointManager(FolderStore(tmp_path)), train_state, 3, 6)
    (tmp_path / "step-00000006" / "state.json").unlink()
    assert newest(tmp_path)[0] == "step-00000003"
    assert names(tmp_path) == ["step-00000003", "step-00000006"]
    save(CheckpointManager(FolderStore(tmp_path)), train_state, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_half_written_checkpoints_are_removed(tmp_path, train_state):
    save(CheckpointManager(FolderStore(tmp_path)), train_state, 3)
    (tmp_path / ".step-00000006.77.partial").mkdir()
    (tmp_path / ".step-00000001.going").mkdir()
    assert newest(tmp_path)[0] == "step-00000003"
    assert names(tmp_path) == ["step-00000003"]


def test_saving_does_not_wait_for_writing(tmp_path, train_state):
    """``save`` returns while the writer still waits for the test."""
    ready, go = threading.Event(), threading.Event()

    class Slow(FolderStore):
        def put(self, name, write):
            ready.set()
            assert go.wait(20)
            super().put(name, write)

    checkpoints = CheckpointManager(Slow(tmp_path))
    checkpoints.save(snapshot(train_state, RunProgress(3), CARD), 3, [])
    assert ready.wait(20)
    assert names(tmp_path) == []
    go.set()
    checkpoints.wait()
    assert names(tmp_path) == ["step-00000003"]


def test_a_failed_write_is_raised_at_the_next_save(tmp_path, train_state):
    (tmp_path / "file").write_text("in the way")
    checkpoints = CheckpointManager(FolderStore(tmp_path / "file"))
    checkpoints.save(snapshot(train_state, RunProgress(3), CARD), 3, [])
    with pytest.raises(UserError, match="could not be written"):
        checkpoints.save(snapshot(train_state, RunProgress(6), CARD), 6, [])


def test_the_state_file_holds_the_progress(tmp_path, train_state):
    checkpoints = CheckpointManager(FolderStore(tmp_path))
    checkpoints.save(snapshot(train_state, RunProgress(3, "00ff", [{"step": 3.0}], {"loss": 0.5}, 2), CARD), 3, [])
    checkpoints.wait()
    state = json.loads((tmp_path / "step-00000003" / "state.json").read_text())
    assert (state["step"], state["samples"], state["sums"], state["counted"]) == (3, "00ff", {"loss": 0.5}, 2)
