"""An estimate on shards: close to what an evaluation measures, and never under the name of a measured PSNR."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from denoise.config import Config, to_dict
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser, make_card
from denoise.errors import UserError
from denoise.estimate import Extent, estimate, lacks_clean
from denoise.evaluate import PROTOCOLS, evaluate
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.images.tensors import to_pixels, to_tensor
from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.rng import batch_rng

FLOAT = PROTOCOLS["float"]


class Smooth(nn.AvgPool2d):
    """The mean of 3x3 pixels."""

    multiple = 1

    def __init__(self) -> None:
        super().__init__(3, stride=1, padding=1, count_include_pad=False)


def denoiser(channels: int = 1) -> Denoiser:
    method = build_method("n2n", {}, parse_noise("gauss25"))
    return Denoiser(Smooth().eval(), method, make_card(to_dict(Config()), channels))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> dict[str, Path]:
    """Shards of noisy photographs at 16 bits: alone, in pairs, with clean ones, and some with and some without."""
    from denoise.sharding.writer import write_shards
    from pipelines.datasets.shard import find_sources

    folder, noise = tmp_path_factory.mktemp("real"), parse_noise("gauss15")
    for number, name in enumerate(["camera.png", "coins.png", "moon.png"]):
        clean = to_tensor(read_image(photographs / name).pixels)[:1, :256, :256] * 0.8 + 0.1
        noisy, noisy2 = (
            noise.corrupt(clean[None], batch_rng(1, draw, torch.tensor([number]))).noisy[0] for draw in (0, 1)
        )
        views = {"": ("single",), "_noisy": ("pairs", "clean", "mixed"), "_noisy2": ("pairs",), "_clean": ("clean",)}
        images = {"": noisy, "_noisy": noisy, "_noisy2": noisy2, "_clean": clean}
        if number == 0:
            views["_clean"] = ("clean", "mixed")
        for view, sets in views.items():
            for data in sets:
                (folder / data).mkdir(exist_ok=True)
                pixels = to_pixels(images[view], "uint16")
                write_image(folder / data / f"{number}{view}.png", DecodedImage(pixels))
    for data in ("single", "pairs", "clean", "mixed"):
        write_shards(folder / "shards" / data, find_sources(folder / data), max_bytes=1_000_000)
    return {data: folder / "shards" / data for data in ("single", "pairs", "clean", "mixed")}


def run(shards: Path, noise: str = "none", protocol: str = "float", **options):
    return estimate(denoiser(), Shards.open(shards), "mine", parse_noise(noise), PROTOCOLS[protocol], **options)


def truth(shards: Path, noise: str = "none", protocol: str = "float") -> float:
    scores = evaluate(denoiser(), Shards.open(shards), "mine", parse_noise(noise), PROTOCOLS[protocol])
    return float(scores["psnr"])


@pytest.mark.parametrize(("data", "source"), [("single", "SURE, measured noise"), ("pairs", "second observation")])
def test_real_images_are_estimated_by_the_best_there_is(real: dict[str, Path], data: str, source: str) -> None:
    found = run(real[data])["estimate"]
    assert found["source"] == source
    assert found["estimated_psnr"] == pytest.approx(truth(real["clean"]), abs=0.15 if data == "pairs" else 0.7)
    assert found["interval"][0] < found["estimated_psnr"] < found["interval"][1]
    assert (found["images_used"], found["images_unresolved"], len(found["images"])) == (3, 0, 3)
    assert found["cautions"] == []
    assert abs(found["residual"]["noise_correlation"][8][9]) < 0.05


@pytest.mark.parametrize("noise", ["gauss25", "poisson30", "corr25_0.8"])
@pytest.mark.parametrize("source", ["second observation", "SURE, known noise"])
def test_with_synthetic_noise_the_estimate_is_close(small_shards: Path, noise: str, source) -> None:
    found = run(small_shards, noise, source=source)["estimate"]
    assert found["estimated_psnr"] == pytest.approx(truth(small_shards, noise), abs=0.3)
    assert found["interval"][1] - found["interval"][0] < 0.8


def test_the_protocol_decides_what_is_compared(small_shards: Path) -> None:
    """Where the restored values are clipped and rounded the estimate is of these."""
    rounded, plain = (run(small_shards, "gauss40", protocol) for protocol in ("uint8", "float"))
    assert rounded["protocol"] == "uint8"
    assert rounded["estimate"]["estimated_psnr"] == pytest.approx(truth(small_shards, "gauss40", "uint8"), abs=0.3)
    assert rounded["estimate"]["estimated_psnr"] != plain["estimate"]["estimated_psnr"]


def test_nothing_in_an_estimate_is_called_psnr(real: dict[str, Path]) -> None:
    text = json.dumps(run(real["single"]))
    assert '"psnr"' not in text
    assert '"ssim"' not in text


def test_it_is_reproducible_and_computes_in_fp32(small_shards: Path) -> None:
    bf16 = replace(denoiser(), precision="bf16")
    first, second = (
        estimate(model, Shards.open(small_shards), "mine", parse_noise("gauss25"), FLOAT)
        for model in (denoiser(), bf16)
    )
    assert first == second
    assert second["precision"] == "fp32"


def test_a_part_of_a_set_and_of_its_images(small_shards: Path) -> None:
    found = run(small_shards, "gauss25", extent=Extent(images=2, side=64))
    assert found["images_used"] == found["estimate"]["images_used"] == 2
    assert found["images_of"] == 5


def test_which_sets_lack_clean_images(real: dict[str, Path]) -> None:
    none = parse_noise("none")
    assert [lacks_clean(Shards.open(real[data]), none) for data in ("single", "pairs", "clean", "mixed")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not lacks_clean(Shards.open(real["single"]), parse_noise("gauss25"))


def test_what_cannot_be_estimated_is_said(real: dict[str, Path], small_shards: Path) -> None:
    with pytest.raises(UserError, match=r"impulse0\.5 cannot be estimated"):
        run(small_shards, "impulse0.5")
    with pytest.raises(UserError, match="has no second observation"):
        run(real["single"], source="second observation")
    with pytest.raises(UserError, match="has no clean image to compare with, which others of the set have"):
        truth(real["mixed"])


def test_weak_noise_comes_with_a_caution(small_shards: Path) -> None:
    weak, strong = (
        run(small_shards, noise, source="SURE, measured noise")["estimate"] for noise in ("gauss1", "gauss25")
    )
    assert weak["too_weak"]
    assert any("too weak to be told from texture" in caution for caution in weak["cautions"])
    assert not strong["too_weak"]
    assert strong["cautions"] == []


def test_planes_are_read_in_the_range_of_the_model(tmp_path):
    from denoise.sharding.writer import write_shards
    from pipelines.datasets.shard import find_sources

    counts = 400 + 3000 * np.random.default_rng(0).random((2, 64, 64), np.float32)
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own" / "cells.npy", counts)
    write_shards(tmp_path / "shards", find_sources(tmp_path / "own"), 1 << 30)
    trained = denoiser()
    trained = replace(trained, card={**trained.card, "range": {"low": 0.0, "high": 10_000.0}})
    seen = []
    shards = Shards.open(tmp_path / "shards")
    estimate(trained, shards, "own", parse_noise("none"), FLOAT, on_image=seen.append)
    assert torch.allclose(seen[0].noisy, torch.from_numpy(counts[:1] / 10_000), atol=1e-6)
