"""Write checkpoints to a small disk until it is full, and say what is left there (run by test_checkpoint.py)."""

import sys
from pathlib import Path

import torch

from denoise.checkpoint import Training, make_card, newest_checkpoint, save_checkpoint
from denoise.config import Config, to_dict
from denoise.errors import UserError
from denoise.nets import NetMaker

folder = Path(sys.argv[1])
net = NetMaker("unet_n2n", 3, {})()
optimizer = torch.optim.Adam(net.parameters())
net(torch.rand(1, 3, 32, 32)).mean().backward()
optimizer.step()
card = make_card(to_dict(Config()), channels=3)
training = Training(net, optimizer)
save_checkpoint(folder / "step-00000001", training, 1, [], card)  # 12 MB: a second one does not fit
try:
    save_checkpoint(folder / "step-00000002", training, 2, [], card)
except UserError as error:
    print(str(error)[:16])
newest = newest_checkpoint(folder)
print(newest.name if newest else "none")
print("nothing else" if [path.name for path in folder.iterdir()] == ["step-00000001"] else sorted(folder.iterdir()))
