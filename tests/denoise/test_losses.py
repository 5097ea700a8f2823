import pytest
import torch

from denoise.losses import distance


def test_distances_written_out():
    restored, target = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.25])
    assert distance("l1", restored, target) == pytest.approx((1 + 0 + 0.25) / 3)
    assert distance("l2", restored, target) == pytest.approx((1 + 0 + 0.0625) / 3)


def test_distances_are_float32_under_bf16():
    restored = torch.ones(4, dtype=torch.bfloat16)
    assert distance("l2", restored, torch.zeros(4)).dtype == torch.float32
