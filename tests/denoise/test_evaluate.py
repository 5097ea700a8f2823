import math
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
    spread,
    to_8_bits,
)
from denoise.methods import build_method
from denoise.methods.ssdn import BlindSpotNet
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


def run(shards, data="mine", protocol="float", net=None, noise="gauss25", denoiser_fields=None, **kwargs):
    model = replace(denoiser(net or Smooth()), **(denoiser_fields or {}))
    return evaluate(model, Shards.open(shards), data, parse_noise(noise), PROTOCOLS[protocol], **kwargs)


def test_an_identity_restores_nothing(small_shards):
    result = run(small_shards, net=nn.Identity())
    assert result["psnr"] == result["noisy_psnr"]
    assert result["noisy_psnr"] == pytest.approx(20.17, abs=0.1)  # 20 log10(255 / 25)
    assert result["ssim"] == pytest.approx(result["noisy_ssim"], rel=1e-12)  # sums in another order


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
    assert (result["tile"], result["overlap"], result["assumed_level"]) == (None, None, 1)
    assert result["ssim_uniform"] > result["ssim"] > result["noisy_ssim"]
    assert abs(result["bias"]) < 1e-3


def test_the_noise_is_fixed(small_shards):
    assert run(small_shards) == run(small_shards)


def test_laine2019_repeats_its_sets_with_fresh_noise(small_shards):
    scored = []
    result = run(small_shards, data="bsds300", protocol="laine2019", on_image=scored.append)
    assert len(scored) == 3 * 5 == count_restorations(PROTOCOLS["laine2019"], "bsds300", Shards.open(small_shards))
    assert PROTOCOLS["laine2019"].repeats_of("bsds300/train") == 3
    repeats = [image.noisy for image in scored if image.name == scored[0].name]
    assert len(repeats) == 3
    assert not torch.equal(repeats[0], repeats[1])
    assert len(result["images"]) == 5
    assert PROTOCOLS["laine2019"].repeats == {"kodak": 10, "bsds300": 3, "set14": 20}


def test_float_repeats_repeats_without_clipping(small_shards):
    scored = []
    result = run(small_shards, "set14", "float_repeats", on_image=scored.append, images=1)
    assert len(scored) == 20 == count_restorations(PROTOCOLS["float_repeats"], "set14", Shards.open(small_shards), 1)
    assert min(image.noisy.min() for image in scored) < 0
    assert result["images"][0]["psnr"] == pytest.approx(sum(image.scores["psnr"] for image in scored) / 20)


@pytest.mark.parametrize(
    ("count", "wanted", "indices"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 2, [0, 2]), (5, 9, [0, 1, 2, 3, 4]), (24, 4, [0, 6, 12, 18])],
)
def test_some_images_are_spread_over_the_set(count, wanted, indices):
    assert spread(count, wanted) == indices


def test_some_images_have_the_noise_and_scores_that_they_have_among_all(small_shards):
    whole, some = run(small_shards), run(small_shards, images=2)
    assert some["images"] == [whole["images"][0], whole["images"][2]]
    assert (some["images_used"], some["images_of"], whole["images_used"]) == (2, 5, 5)


def test_tiles_change_scores_where_the_net_sees_further_than_its_overlap(small_shards):
    net = nn.AvgPool2d(33, stride=1, padding=16, count_include_pad=True)  # dark along every border
    whole = run(small_shards, net=net)
    tiled, dark = (run(small_shards, net=net, denoiser_fields={"tile": tile, "overlap": 8}) for tile in (512, 40))
    assert tiled["psnr"] == pytest.approx(whole["psnr"], abs=1e-9)  # one tile holds the whole image
    assert dark["bias"] < whole["bias"] < 0
    assert (dark["tile"], dark["overlap"]) == (40, 8)


def test_a_level_that_is_not_the_true_one_reaches_the_method(small_shards):
    """The identity returns what r2r recorrupts: with half the level it adds half the noise."""
    method = build_method("r2r", {"alpha": 1.0, "passes": 1}, parse_noise("gauss25"))
    net = replace(denoiser(nn.Identity()), method=method)
    found = {
        level: evaluate(
            net, Shards.open(small_shards), "mine", parse_noise("gauss25"), PROTOCOLS["float"], assumed_level=level
        )
        for level in (0.5, 1.0)
    }
    assert found[1.0]["psnr"] == pytest.approx(20.17 - 3.01, abs=0.1)
    assert found[0.5]["psnr"] == pytest.approx(20.17 - 0.97, abs=0.1)
    assert found[0.5]["assumed_level"] == 0.5


@pytest.mark.parametrize(("sigma", "found"), [("known", False), ("constant", True)])
def test_a_learnt_sigma_is_recorded_beside_the_true_one(small_shards, sigma, found):
    method = build_method("ssdn", {"sigma": sigma}, parse_noise("gauss5_50"))
    net = BlindSpotNet(nn.Conv2d(3, 9, 1), sigma)
    shards, noise = Shards.open(small_shards), parse_noise("gauss5_50")
    scored = evaluate(replace(denoiser(net), method=method), shards, "mine", noise, PROTOCOLS["float"])
    for row in (scored, *scored["images"]):
        assert ("sigma" in row) == ("estimated_sigma" in row) == found
    if found:
        assert scored["estimated_sigma"] == pytest.approx(0.01915, abs=1e-5)  # what it starts from
        assert [row["noisy_psnr"] for row in scored["images"]] == pytest.approx(
            [-20 * math.log10(row["sigma"]) for row in scored["images"]], abs=0.2
        )


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
