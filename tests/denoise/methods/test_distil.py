"""Distillation: the loss of a student."""

import pytest
import torch

from denoise.methods import build_method
from denoise.nets import NetMaker
from denoise.noise import parse_noise


def test_the_loss_is_the_sum_of_the_mean_absolute_differences_to_the_targets():
    method = build_method("distil", {}, parse_noise("none"))
    noisy, targets = torch.rand(2, 3, 8, 8), [torch.rand(2, 3, 8, 8) for _ in range(4)]
    batch = method.make_batch({"noisy": noisy, "taught": torch.cat(targets, dim=1)}, None)
    loss = method.loss(torch.nn.Identity(), batch, 0.5)["loss"].item()
    assert loss == pytest.approx(sum((noisy - target).abs().mean().item() for target in targets), rel=1e-6)


def test_a_model_of_atbsn_teaches_what_it_restores_with_each_of_seven_holes():
    torch.manual_seed(0)
    method = build_method("atbsn", {}, parse_noise("none"))
    net, noisy = method.make_net(NetMaker("unet_ssdn", 1, {})), torch.rand(1, 1, 32, 64)
    with torch.no_grad():
        targets = method.student_targets(net, noisy)
        alone = [
            build_method("atbsn", {"hole_at_test": hole}, parse_noise("none")).predict(net, noisy, None, None)
            for hole in (0, 1, 3, 5, 7, 9, 11)
        ]
    assert all(torch.equal(target, restored) for target, restored in zip(targets, alone, strict=True))


def test_the_level_is_seen_only_where_the_teacher_is_told_it():
    noise = parse_noise("gauss25")
    assert build_method("distil", {}, noise).views() == ("noisy", "taught")
    assert build_method("distil", {"told_level": True}, noise).views() == ("noisy", "level", "taught")
