"""Validation: the same scores by any number of ranks, from images that are read once."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from denoise import distributed
from denoise.config import Config, load_config, to_dict
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE, make_views
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser, make_card
from denoise.images.io import read_image
from denoise.images.metrics import psnr
from denoise.images.tensors import to_tensor
from denoise.methods import build_method, with_net
from denoise.noise import parse_noise
from denoise.rng import batch_rng
from denoise.training.crop_psnr import training_psnr
from denoise.training.setup import make_validator
from tests.denoise.training.test_gradient_averaging import in_ranks

NOISE = parse_noise("gauss25")
METHOD = build_method("n2v", {}, NOISE)


def small_denoiser(rank=0, precision="fp32"):
    """A net whose statistics of batch normalisation differ between the ranks, as after a step of training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    net.multiple = 8
    net[1].running_mean.add_(rank)
    return Denoiser(net, METHOD, make_card(to_dict(Config()), channels=3), passes=1, precision=precision)


def validator_of(shards, folder, *overrides):
    config = with_net(load_config(None, ["method=n2v", "train.val_loss=true", *overrides]))
    images = ShardedDataset([Shards.open(shards)])
    return make_validator(config, images, METHOD, NOISE, device=torch.device("cpu"), folder=folder)


def scores_of_rank(shards, folder, rank):
    validator = validator_of(shards, folder / str(rank))
    scores = validator.scores(small_denoiser(rank), 100)
    files = [path.name for path in folder.glob(f"{rank}/*")]
    return scores, sorted(validator._pairs), files


def test_any_number_of_ranks_gives_the_same_scores(small_shards, tmp_path):
    alone, dealt, files = scores_of_rank(small_shards, tmp_path / "alone", distributed.rank())
    assert (dealt, files) == ([0, 1, 2, 3, 4], ["step-000100.png"])
    assert set(alone) == {"val_psnr", "val_ssim", "val_mse", "val_loss"}
    for world in (2, 3):
        results = in_ranks(partial(scores_of_rank, small_shards, tmp_path / str(world)), world)
        assert [result[0] for result in results] == [pytest.approx(alone, abs=1e-9)] * world
        assert [result[1] for result in results] == [list(range(rank, 5, world)) for rank in range(world)]
        assert [result[2] for result in results] == [files, *[[]] * (world - 1)]


def test_images_are_read_once(small_shards, tmp_path, monkeypatch):
    validator = validator_of(small_shards, tmp_path)
    first = validator.scores(small_denoiser(), 1)
    monkeypatch.setattr(ShardedDataset, "pixels", lambda *args: pytest.fail("an image was read again"))
    assert validator.scores(small_denoiser(), 2) == first
    assert (tmp_path / "step-000001.png").read_bytes() == (tmp_path / "step-000002.png").read_bytes()


def test_the_scores_are_those_of_the_image_that_is_shown(small_shards, tmp_path):
    validator = validator_of(small_shards, tmp_path)
    validator = replace(validator, images=validator.images, samples=None, count=1)
    scores = validator.scores(small_denoiser(), 1)
    assert set(scores) == {"val_psnr", "val_ssim", "val_mse"}
    assert scores["val_psnr"] == pytest.approx(10 * math.log10(1 / scores["val_mse"]))
    noisy, restored, clean = to_tensor(read_image(tmp_path / "step-000001.png").pixels).chunk(3, dim=-1)
    assert 19 < psnr(noisy, clean) < 22  # sigma 25 of 255, clipped
    pair = validator._pairs[0]
    assert psnr(restored, clean) == pytest.approx(
        psnr(small_denoiser().net.eval()(pair.noisy).clamp(0, 1)[0], clean), abs=0.05
    )


def test_the_net_computes_in_the_precision_of_training_and_trains_on(small_shards, tmp_path):
    seen = []
    for precision in ("fp32", "bf16"):
        denoiser = small_denoiser(precision=precision)
        denoiser.net.train()[0].register_forward_hook(lambda net, given, made: seen.append((made.dtype, net.training)))
        scores = validator_of(small_shards, tmp_path).scores(denoiser, 1)
        assert denoiser.net.training
        assert all(math.isfinite(value) for value in scores.values())
    assert set(seen) == {(torch.float32, False), (torch.bfloat16, False)}


def test_the_first_val_images_are_validated_on_and_only_some_of_them_stay_in_memory(
    small_shards, tmp_path, monkeypatch
):
    expected = validator_of(small_shards, tmp_path, "train.val_images=3").scores(small_denoiser(), 1)
    monkeypatch.setattr("denoise.training.validation.KEPT", 2)
    validator = validator_of(small_shards, tmp_path, "train.val_images=3")
    assert [validator.scores(small_denoiser(), step) for step in (1, 2)] == [expected, expected]
    assert (sorted(validator._pairs), sorted(validator._batches)) == ([0, 1], [0, 1])
    assert validator_of(small_shards, tmp_path, "train.val_images=4").scores(small_denoiser(), 1) != expected


def test_the_validation_loss_of_l0_is_the_mean_absolute_difference(small_shards, tmp_path):
    """At the end of training, where other losses are validated, l0 is 1 whatever the net does."""
    validator, losses = validator_of(small_shards, tmp_path, "train.val_images=1"), {}
    for name in ("l0", "l1", "l2"):
        denoiser = replace(small_denoiser(), method=build_method("n2n", {"loss_name": name}, NOISE))
        losses[name] = validator.scores(denoiser, 1)["val_loss"]
    assert losses["l0"] == pytest.approx(losses["l1"], rel=1e-5)
    assert losses["l2"] < 0.9 * losses["l1"] < 0.9


@pytest.mark.parametrize(("crop", "expected"), [(8, 96), (40, 80), (128, 128)])
def test_the_loss_is_of_no_more_than_the_image_unless_that_is_smaller_than_a_crop(
    crop, expected, small_shards, tmp_path
):
    """A centre of 256 pixels of an image of 100 would be little but its reflections."""
    validator = validator_of(small_shards, tmp_path, f"train.crop={crop}")
    for index in range(5):  # their shorter sides are 96 to 100 pixels
        batch = validator._make_batch(small_denoiser(), validator.samples, index)
        assert batch["input"].shape[-2:] == (expected, expected)


CROPS = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def training_psnr_of_rank(world, rank):
    positions = torch.arange(rank, len(CROPS), world)
    batch = CropBatch(positions, {IMAGE: CROPS[positions]})
    return training_psnr(small_denoiser(), batch, NOISE, Config(seed=3), step=7)


def test_the_psnr_of_training_crops_is_that_of_the_noisy_crops_of_the_step_for_any_number_of_ranks():
    alone = training_psnr_of_rank(1, 0)
    assert in_ranks(partial(training_psnr_of_rank, 3), 3) == [alone] * 3
    clean, denoiser = CROPS / 255, small_denoiser()
    noisy = make_views({IMAGE: clean}, METHOD, NOISE, batch_rng(3, 7, torch.arange(4)))["noisy"]
    restored = denoiser.net.eval()(noisy).detach()
    expected = torch.tensor([psnr(*pair) for pair in zip(restored, clean, strict=True)]).mean()
    assert alone["train_psnr"] == pytest.approx(expected.item(), abs=1e-4)


def test_without_clean_crops_there_is_no_psnr_of_training_crops():
    batch = CropBatch(torch.arange(4), {"noisy": CROPS})
    assert training_psnr(small_denoiser(), batch, parse_noise("none"), Config(), step=7) == {}
