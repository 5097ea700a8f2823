"""The model that a training run leaves."""

import json

import pytest
import torch

from denoise.config import load_config, to_dict
from denoise.denoiser import load_denoiser, make_card
from denoise.errors import UserError
from denoise.files import write_folder
from denoise.methods import with_net
from denoise.nets import NetMaker
from denoise.training.checkpoint import RunProgress, TrainState, checkpoint_name, snapshot
from denoise.training.checkpoint_manager import FolderStore
from pipelines.training.inputs import export_model

CONFIG = with_net(load_config(None, ["net=cnn5", "net.features=4", "train.steps=1"]))


def store_with(folder, weight):
    """Return the checkpoints of a run whose net has this weight."""
    net = NetMaker("cnn5", 3, {"features": 4})()
    with torch.no_grad():
        net.last.bias[0] = weight
    train_state = TrainState(net, torch.optim.Adam(net.parameters()))
    progress = RunProgress(1, history=[{"step": 1, "loss": 0.5}])
    card = make_card(to_dict(CONFIG), 3, run="n2n")
    write_folder(folder / checkpoint_name(1), snapshot(train_state, progress, card).write)
    return FolderStore(folder)


def test_a_run_leaves_its_model_with_its_log(tmp_path):
    assert export_model(CONFIG, store_with(tmp_path / "run", 0.25), tmp_path / "model")["loss"] == 0.5
    assert load_denoiser(tmp_path / "model").net.last.bias[0] == 0.25
    assert json.loads((tmp_path / "model" / "metrics.jsonl").read_text())["step"] == 1


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_run_that_diverged_leaves_no_model(tmp_path, weight):
    with pytest.raises(UserError, match=r"not finite \(last\.bias\), so its training diverged"):
        export_model(CONFIG, store_with(tmp_path / "run", weight), tmp_path / "model")
    assert not (tmp_path / "model").exists()
