"""Which device a process computes on; groups of processes are in training/test_agreement.py and beside it."""

import pytest
import torch

from denoise import distributed
from denoise.errors import UserError


@pytest.fixture
def one_gpu(monkeypatch):
    """Let torch believe that there is one GPU: nothing here computes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "_device", [])


def test_a_process_takes_the_gpu_of_its_rank_unless_told_otherwise(one_gpu):
    assert distributed.device() == torch.device("cuda", 0)
    distributed.use_device(torch.device("cpu"))
    assert distributed.device() == torch.device("cpu")


def test_torchrun_with_more_processes_than_gpus_is_refused(one_gpu, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="2 processes on a machine with 1 GPUs.*--nproc-per-node=1.*ray.gpu=no"):
        distributed.start_from_environment()
