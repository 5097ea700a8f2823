"""What an evaluation writes: scores that any JSON reader takes, and an image of each name."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from denoise.config import Config, load_config, to_dict
from denoise.denoiser import Denoiser, make_card
from denoise.errors import UserError
from denoise.files import write_json
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.methods import build_method
from denoise.noise import parse_noise
from pipelines.cli.common import answer, open_model
from pipelines.datasets.shard import shard
from pipelines.evaluate import evaluate_model, find_scores
from pipelines.registry.scores import check_scores
from pipelines.report.inputs import read_evaluations
from pipelines.report.residual import estimate_lines, verdict
from pipelines.report.write import metric_rows, table


class Net(nn.Module):
    """A net of one weight: the identity, or one that has diverged."""

    multiple = 1

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight), requires_grad=False)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy * self.weight


def evaluated(own: Path, weight: float = 1.0, noise: str = "none") -> tuple[list[dict[str, Any]], Path]:
    """The results of a net on a folder of images, and the file of its scores."""
    root = own.parent
    shard("own", "test", root / "data", own)
    method = build_method("n2n", {}, parse_noise("gauss25"))
    denoiser = Denoiser(Net(weight).eval(), method, make_card(to_dict(Config()), channels=1))
    config = replace(Config(), data=replace(Config().data, root=str(root / "data")))
    results = evaluate_model(config, denoiser, ["own"], "float", noise, root / "scores")
    return results, find_scores(root / "scores" / "own", "float")


@pytest.fixture
def own(photographs: Path, tmp_path: Path) -> Path:
    """A pair of equal images, beside one whose noisy image is darker than the clean one."""
    pixels = read_image(photographs / "camera.png").pixels[100:140, 100:150]
    (tmp_path / "own").mkdir()
    for name, image in (("a_noisy", pixels), ("a_clean", pixels), ("b_noisy", pixels // 2), ("b_clean", pixels)):
        write_image(tmp_path / "own" / f"{name}.png", DecodedImage(image))
    return tmp_path / "own"


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_score_of_equal_images_is_null_in_json_and_infinite_for_people(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, file = evaluated(own)
    answer(results, table(results), True)
    printed, written = strict(capsys.readouterr().out)[0], strict(file.read_text())
    assert printed["psnr"] is written["psnr"] is written["images"][0]["noisy_psnr"] is None
    assert math.isfinite(written["images"][1]["psnr"])
    assert written["images"][0]["ssim"] == 1
    (evaluation,) = read_evaluations([file])
    assert evaluation.mean.psnr == evaluation.images[0].psnr == math.inf
    assert (evaluation.mean.gain, evaluation.images[1].gain) == (0, 0)
    rows = metric_rows([file])
    assert "inf" in table(rows.values())
    write_json(tmp_path / "metrics.json", rows)
    assert strict((tmp_path / "metrics.json").read_text())["n2n"]["psnr"] is None


def test_the_report_of_equal_images_has_empty_cells(own: Path, tmp_path: Path) -> None:
    from pipelines.report.write import write_report

    _, file = evaluated(own)
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "model.json", {"config": to_dict(Config())})
    (tmp_path / "model" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "val_psnr": null}\n')
    write_report([tmp_path / "model"], [file], tmp_path / "report")
    (row,) = csv.DictReader((tmp_path / "report" / "scores.csv").open())
    assert (row["psnr"], row["noisy_psnr"]) == ("", "")
    assert float(row["ssim"]) < 1


def test_a_result_that_is_not_finite_is_no_score(own: Path) -> None:
    for weight in (math.nan, math.inf):
        with pytest.raises(UserError, match="not finite"):
            evaluated(own, weight)


def test_every_image_has_files_of_its_own(photographs: Path, tmp_path: Path) -> None:
    """Names that differ only in their suffix or their slash, and names too long for a suffix."""
    own = tmp_path / "own"
    (own / "d").mkdir(parents=True)
    pixels = read_image(photographs / "camera.png").pixels[100:140, 100:150]
    names = ["a.png", "a.tif", "d/e.png", "d_e.png", "m" * 250 + ".png", "plain.png"]
    for number, name in enumerate(names):
        write_image(own / name, DecodedImage(np.roll(pixels, number, axis=1)))
    _, file = evaluated(own, noise="gauss25")
    (evaluation,) = read_evaluations([file])
    assert sorted(scores.name for scores in evaluation.images) == sorted(names)
    for scores in evaluation.images:
        files = evaluation.files(scores.stem)
        assert files is not None
        np.testing.assert_array_equal(read_image(files["clean"]).pixels, read_image(own / scores.name).pixels)
    assert (file.parent / "images" / "plain-restored.png").is_file()


@pytest.fixture
def noisy(photographs: Path, tmp_path: Path) -> Path:
    """Two noisy photographs without clean ones."""
    rng = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for name in ("camera", "coins"):
        pixels = read_image(photographs / f"{name}.png").pixels[:200, :200, :1]
        image = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).round().astype(np.uint8)
        write_image(tmp_path / "own" / f"{name}.png", DecodedImage(image))
    return tmp_path / "own"


def test_a_set_without_clean_images_gets_an_estimate_and_a_page(noisy: Path) -> None:
    (result,), file = evaluated(noisy, weight=0.9)
    assert result["estimate"]["source"] == "SURE, measured noise"
    assert "psnr" not in result
    assert strict(file.read_text())["estimate"]["estimated_psnr"] == pytest.approx(result["estimate"]["estimated_psnr"])
    assert sorted(path.name for path in (file.parent / "images").iterdir()) == [
        "camera-noisy.png", "camera-restored.png", "coins-noisy.png", "coins-restored.png",
    ]  # fmt: skip
    page = (file.parent / "residual.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert page.count("<rect") == 2 * 17 * 17
    assert f"PSNR estimated as {result['estimate']['estimated_psnr']:.2f} dB" in page
    assert "://" not in page  # needs no other file
    evaluated(noisy, weight=0.9)  # replaces it


def test_the_lines_of_an_estimate_say_what_it_rests_on(noisy: Path) -> None:
    (result,), _ = evaluated(noisy, weight=0.9)
    first, source, covers, residual, *cautions = estimate_lines(result)
    assert first.startswith("n2n own: PSNR estimated as ")
    assert "(90 %: " in first
    assert "on these 2 images" in first
    assert source == f"  by SURE, measured noise, if {result['estimate']['assumption']}"
    assert "do not cover" in covers
    assert "the residual is " in residual
    assert cautions == []


def test_an_estimate_is_no_score_for_the_report_and_the_registry(noisy: Path) -> None:
    _, file = evaluated(noisy)
    with pytest.raises(UserError, match="holds an estimate, of a set without clean images, and no scores to compare"):
        read_evaluations([file])
    denoiser = Denoiser(Net(), build_method("n2n", {}, parse_noise("gauss25")), make_card(to_dict(Config()), 1))
    with pytest.raises(UserError, match="no scores but an estimate"):
        check_scores(strict(file.read_text()), denoiser)


def test_beside_scores_an_estimate_is_of_the_same_images(own: Path, tmp_path: Path) -> None:
    shard("own", "test", tmp_path / "data", own)
    denoiser = Denoiser(Net(0.9), build_method("n2n", {}, parse_noise("gauss25")), make_card(to_dict(Config()), 1))
    config = replace(Config(), data=replace(Config().data, root=str(tmp_path / "data")))
    (result,) = evaluate_model(config, denoiser, ["own"], "float", "gauss25", None, estimate=True)
    assert result["estimate"]["estimated_psnr"] == pytest.approx(result["psnr"], abs=1.0)  # of 40x50 pixels
    assert [image["name"] for image in result["estimate"]["images"]] == [image["name"] for image in result["images"]]


@pytest.mark.parametrize(
    ("excess", "said"),
    [(0.01, "nothing else shows"), (0.2, "detail was removed"), (-0.2, "noise of that scale was left")],
)
def test_what_the_residual_says(excess: float, said: str) -> None:
    assert said in verdict({"excess": excess, "lag": [1, -2]})


def test_params_yaml_says_how_to_score(own: Path, tmp_path: Path) -> None:
    """The noise, of which the command line has the last word, the images, and the tiles."""
    shard("own", "test", tmp_path / "data", own)
    (tmp_path / "params.yaml").write_text("evaluate: {noise: gauss50, images: 1, tile: 20, overlap: 5}\n")
    config = load_config(tmp_path / "params.yaml", [f"data.root={tmp_path / 'data'}", "data.colour=grey"])
    denoiser = open_model(config, "zs_n2n")
    denoiser = replace(denoiser, method=replace(denoiser.method, steps=1))
    for noise, used in ((None, "gauss50"), ("gauss25", "gauss25")):
        (result,) = evaluate_model(config, denoiser, ["own"], "float", noise, None)
        assert result["noise"] == used
        assert (result["tile"], result["overlap"]) == (20, 5)
        assert (result["images_used"], result["images_of"], len(result["images"])) == (1, 2, 1)


def test_a_level_is_told_only_to_methods_that_need_one(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("evaluate: {assumed_level: 0.9}\n")
    config = load_config(tmp_path / "params.yaml", ["data.colour=grey"])
    with pytest.raises(UserError, match=r"evaluate\.assumed_level=0\.9 would change nothing: zs_n2n needs no noise"):
        evaluate_model(config, open_model(config, "zs_n2n"), ["own"], "float", "gauss25", None)


def test_scores_under_each_protocol_are_kept_and_found(tmp_path):
    for protocol in ("float", "uint8"):
        write_json(tmp_path / "kodak" / protocol / "scores.json", {})
    assert find_scores(tmp_path / "kodak", "uint8") == tmp_path / "kodak/uint8/scores.json"
    assert find_scores(tmp_path / "kodak/float") == tmp_path / "kodak/float/scores.json"
    assert find_scores(tmp_path / "kodak/float/scores.json") == tmp_path / "kodak/float/scores.json"
    with pytest.raises(UserError, match="has scores under float and uint8: give the folder of one"):
        find_scores(tmp_path / "kodak")
    with pytest.raises(UserError, match="no scores in .*elsewhere"):
        find_scores(tmp_path / "elsewhere", "float")
    write_json(tmp_path / "old" / "scores.json", {})  # as version 0.1 wrote them
    assert find_scores(tmp_path / "old", "float") == find_scores(tmp_path / "old") == tmp_path / "old/scores.json"


def test_what_is_no_evaluation_is_not_replaced_by_one(own: Path, tmp_path: Path) -> None:
    _, file = evaluated(own)
    evaluated(own)  # an earlier evaluation is
    (file.parent / "notes.txt").write_text("mine")
    scores = file.read_bytes()
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part of an evaluation"):
        evaluated(own, weight=0.5)
    assert (file.parent / "notes.txt").read_text() == "mine"
    assert file.read_bytes() == scores
