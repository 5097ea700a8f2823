import pytest
import torch

from denoise.methods.losses import distance, masked_mean

pytestmark = pytest.mark.smoke

RESTORED = torch.tensor([0.0, 1.0, 0.5]).view(1, 1, 1, 3)
TARGET = torch.tensor([1.0, 1.0, 0.25]).view(1, 1, 1, 3)


def test_distances_written_out():
    assert distance("l1", RESTORED, TARGET) == pytest.approx((1 + 0 + 0.25) / 3)
    assert distance("l2", RESTORED, TARGET) == pytest.approx((1 + 0 + 0.0625) / 3)


def test_l0_anneals_from_squares_to_counting():
    start = distance("l0", RESTORED, TARGET, progress=0)
    middle = distance("l0", RESTORED, TARGET, progress=0.5)
    end = distance("l0", RESTORED, TARGET, progress=1)
    assert start == pytest.approx(distance("l2", RESTORED, TARGET).item())
    assert middle == pytest.approx(distance("l1", RESTORED, TARGET).item())
    assert end == pytest.approx(1)  # anything to the power of 0
    for progress in (0.75, 1.0):  # max(0.5, 2 - 2 progress)
        laine = distance("l0", RESTORED, TARGET, progress=progress, final_exponent=0.5)
        assert laine == pytest.approx((1 + 0.25**0.5 + 1e-8**0.5) / 3)


def test_the_l0_gradient_is_finite_where_the_difference_is_zero():
    restored = TARGET.clone().requires_grad_()
    distance("l0", restored, TARGET, progress=0.9).backward()
    assert restored.grad.isfinite().all()


def test_a_mask_counts_only_what_it_marks_and_samples_alike():
    values = torch.arange(8.0).view(2, 2, 1, 2)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    assert masked_mean(values, mask) == pytest.approx(((0 + 2) / 2 + (4 + 5 + 6 + 7) / 4) / 2)
    assert masked_mean(values, torch.zeros(2, 1, 1, 1)) == 0


def test_a_mask_of_ones_changes_nothing():
    restored, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    for kind in ("l0", "l1", "l2"):
        masked = distance(kind, restored, target, progress=0.3, mask=torch.ones(2, 1, 8, 8))
        assert masked == pytest.approx(distance(kind, restored, target, progress=0.3).item(), rel=1e-6)


def test_distances_are_float32_under_bf16():
    restored = torch.ones(4, dtype=torch.bfloat16)
    assert distance("l2", restored, torch.zeros(4)).dtype == torch.float32
