"""Write checkpoints to a small disk until it is full, and print what is left there (run by test_checkpoint.py)."""

import sys
from pathlib import Path

import torch

from denoise.config import Config, to_dict
from denoise.denoiser import make_card
from denoise.errors import UserError
from denoise.nets import NetMaker
from denoise.training.checkpoint import RunProgress, TrainState, snapshot
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore

folder = Path(sys.argv[1])
net = NetMaker("unet_n2n", 3, {})()
optimizer = torch.optim.Adam(net.parameters())
net(torch.rand(1, 3, 32, 32)).mean().backward()
optimizer.step()
card = make_card(to_dict(Config()), channels=3)
train_state = TrainState(net, optimizer)
checkpoints = CheckpointManager(FolderStore(folder))
checkpoints.save(snapshot(train_state, RunProgress(1), card), 1, [])  # 12 MB: a second one does not fit
checkpoints.wait()
try:
    checkpoints.save(snapshot(train_state, RunProgress(2), card), 2, [])
    checkpoints.wait()
except UserError as error:
    print(str(error)[:16])
with checkpoints.newest() as newest:
    print(newest.name if newest else "none")
print("nothing else" if [path.name for path in folder.iterdir()] == ["step-00000001"] else sorted(folder.iterdir()))
