from dataclasses import replace

import pytest
import torch
from torch import nn

from denoise.config import Config, to_dict
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser, make_card
from denoise.errors import UserError
from denoise.evaluate import (
    PROTOCOLS,
    count_restorations,
    evaluate,
    evaluation_precision,
    get_protocol,
    to_8_bits,
)
from denoise.methods import build_method
from denoise.noise import parse_noise

pytestmark = pytest.mark.smoke


def denoiser(net: nn.Module) -> Denoiser:
    method = build_method("n2n", {}, parse_noise("gauss25"))
    return Denoiser(net.eval(), method, make_card(to_dict(Config()), channels=3))


class Smooth(nn.AvgPool2d):
    """A real, if simple, denoiser: the mean of 3x3 pixels."""

    multiple = 8

    def __init__(self) -> None:
        super().__init__(3, stride=1, padding=1, count_include_pad=False)


def run(shards, data="mine", protocol="float", net=None, noise="gauss25", **kwargs):
    return evaluate(
        denoiser(net or Smooth()), Shards.open(shards), data, parse_noise(noise), PROTOCOLS[protocol], **kwargs
    )


def test_an_identity_restores_nothing(small_shards):
    result = run(small_shards, net=nn.Identity())
    assert result["psnr"] == result["noisy_psnr"]
    assert result["noisy_psnr"] == pytest.approx(20.17, abs=0.1)  # 20 log10(255 / 25)
    assert result["ssim"] == result["noisy_ssim"]


def test_smoothing_helps_and_everything_is_named(small_shards):
    result = run(small_shards)
    assert result["psnr"] > result["noisy_psnr"] + 2
    assert (result["method"], result["noise"], result["data"], result["protocol"]) == (
        "n2n",
        "gauss25",
        "mine",
        "float",
    )
    assert len(result["images"]) == 5
    assert result["psnr"] == pytest.approx(sum(row["psnr"] for row in result["images"]) / 5)
    assert result["data_digest"] == Shards.open(small_shards).digest


def test_the_noise_is_fixed(small_shards):
    assert run(small_shards) == run(small_shards)


def test_laine2019_repeats_its_sets_with_fresh_noise(small_shards):
    scored = []
    result = run(small_shards, data="bsds300", protocol="laine2019", on_image=scored.append)
    assert len(scored) == 3 * 5 == count_restorations(PROTOCOLS["laine2019"], "bsds300", Shards.open(small_shards))
    repeats = [image.noisy for image in scored if image.name == scored[0].name]
    assert len(repeats) == 3
    assert not torch.equal(repeats[0], repeats[1])
    assert len(result["images"]) == 5
    assert PROTOCOLS["laine2019"].repeats == {"kodak": 10, "bsds300": 3, "set14": 20}


def test_laine2019_compares_8_bit_images(small_shards):
    scored = []
    run(small_shards, protocol="laine2019", on_image=scored.append)
    for kind in ("noisy", "restored", "clean"):
        values = torch.cat([getattr(image, kind).flatten() for image in scored]) * 255
        assert 0 <= values.min() <= values.max() <= 255
        assert torch.allclose(values, values.round(), atol=1e-4)


def test_quantising_clips_and_rounds_halves_up():
    values = torch.tensor([-0.2, 0.5 / 255, 0.49 / 255, 1.3, 100 / 255])
    assert (to_8_bits(values) * 255).round().tolist() == [0, 1, 0, 255, 100]


def test_a_range_draws_a_level_for_each_image(small_shards):
    result = run(small_shards, noise="gauss5_50", net=nn.Identity())
    assert len({round(row["noisy_psnr"], 1) for row in result["images"]}) > 1


def test_an_unknown_protocol_is_reported():
    with pytest.raises(UserError, match="did you mean laine2019"):
        get_protocol("laine2018")


@pytest.mark.parametrize(
    ("asked", "trained_in", "expected"),
    [("auto", "fp32", "fp32"), ("auto", "auto", "auto"), ("auto", "bf16", "auto"), ("fp32", "auto", "fp32"),
     ("bf16", "fp32", "bf16"), ("auto", None, "auto")],
)  # fmt: skip
def test_the_precision_of_a_score_is_that_of_training_unless_given(asked, trained_in, expected):
    config = {"train": {"precision": trained_in}} if trained_in else {}
    assert evaluation_precision(asked, {"config": config}) == expected


def test_the_precision_is_recorded_and_changes_scores_by_rounding_only(small_shards):
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    nn.init.dirac_(net.weight)
    net.weight.data += 0.01 * torch.randn_like(net.weight)
    net.multiple = 8
    full, half = (
        evaluate(
            replace(denoiser(net), precision=precision),
            Shards.open(small_shards),
            "mine",
            parse_noise("gauss25"),
            PROTOCOLS["float"],
        )
        for precision in ("fp32", "bf16")
    )
    assert (full["precision"], half["precision"]) == ("fp32", "bf16")
    assert full["psnr"] != half["psnr"]
    assert full["psnr"] == pytest.approx(half["psnr"], abs=0.02)
