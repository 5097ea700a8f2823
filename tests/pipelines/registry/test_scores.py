"""Scores that are registered belong to the model, and are what an evaluation has written."""

import json
import shutil
from pathlib import Path

import pytest

from denoise.config import load_config
from denoise.denoiser import load_denoiser, make_card, save_model
from denoise.errors import UserError
from denoise.methods import build_method
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from pipelines.evaluate import evaluate_model
from pipelines.registry.scores import check_scores
from tests.pipelines.mlflow_helpers import make_model, scores


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", "gauss25")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, model, small_shards):
    """The folder of an evaluation of the model, with its own noise and with another, and with flips averaged."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(small_shards, root / "data" / "shards" / "test" / "small")
    config = load_config(None, [f"data.root={root / 'data'}"])
    for folder, noise in (("own", None), ("weak", "gauss1")):
        evaluate_model(config, load_denoiser(model), ["small"], "float", noise, root / folder)
    return root


def written(evaluation: Path, folder: str) -> dict[str, object]:
    (file,) = (evaluation / folder).rglob("scores.json")
    return json.loads(file.read_text())


def test_an_evaluation_writes_what_is_registered(evaluation, model):
    tree = written(evaluation, "own")
    tags = check_scores(tree, load_denoiser(model)).tags(load_denoiser(model))
    assert tags == {
        "protocol": "float",
        "data": "small",
        "data_digest": tree["data_digest"],
        "scored_noise": "gauss25",
        "channels": "3",
        "passes": "1",
        "averaged_over": "1",
        "tiles": "own",
        **{key: str(tree[key]) for key in ("noisy_psnr", "psnr", "noisy_ssim", "ssim")},
    }


def test_scores_with_another_noise_are_refused(evaluation, model):
    with pytest.raises(UserError, match="for the noise gauss1, and the model was trained for gauss25"):
        check_scores(written(evaluation, "weak"), load_denoiser(model))


@pytest.mark.parametrize(
    ("trained", "scored", "accepted"),
    [
        ("gauss25", "gauss25.0", True),
        ("gauss25", "gauss24", False),
        ("gauss25", "gauss5_50", False),
        ("gauss5_50", "gauss5_50", True),
        ("gauss5_50", "gauss25", True),
        ("gauss5_50", "gauss10_20", True),
        ("gauss5_50", "gauss5_51", False),
        ("gauss5_50", "poisson25", False),
        ("gauss25", "none", False),
        ("none", "none", True),
        ("none", "gauss25", False),
    ],
)
def test_the_noise_of_scores_lies_in_what_the_model_was_trained_for(tmp_path, trained, scored, accepted):
    model = make_model(tmp_path / "model", trained)
    tree = scores(model, 30.0, noise=scored)
    if accepted:
        assert check_scores(tree, load_denoiser(model)).noise == scored
    else:
        with pytest.raises(UserError, match="the model was trained for"):
            check_scores(tree, load_denoiser(model))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_sha256", "0" * 64, "scores of another model: model_sha256 is 0"),
        ("method", "n2v", "scores of another model: method is n2v"),
        ("channels", 1, "scores of another model: channels is 1, expected 3"),
        ("psnr", 99.0, "not consistent: psnr is 99.0, the mean over the images 30.0"),
        ("ssim", 0.9, "not consistent: ssim is 0.9"),
        ("psnr", float("nan"), "psnr: input should be a finite number"),
        ("psnr", float("inf"), "psnr: input should be a finite number"),
        ("psnr", "30", "psnr: input should be a valid number"),
        ("psnr", None, "psnr"),
        ("ssim", 1.5, "ssim: input should be less than or equal to 1"),
        ("noise", "gaus25", "noise=gaus25 is not a known noise"),
        ("noise", 25, "noise: input should be a valid string"),
        ("protocol", "flot", "did you mean float"),
        ("passes", 0, "passes"),
        ("passes", True, "passes"),
        ("averaged_over", 1.5, "averaged_over"),
        ("images_used", 4, r"scores of 4 of None images, .* without evaluate\.images"),
        ("assumed_level", 0.9, r"told 0\.9 times the true noise level: .* without evaluate\.assumed_level"),
        ("tile", 0, "tile"),
        ("images", [], "images"),
        ("images", {"a": 1}, "images"),
        ("images", [{"name": "a"}], "images.0"),
    ],
)
def test_scores_that_are_wrong_are_refused(model, key, value, message):
    with pytest.raises(UserError, match=message):
        check_scores(scores(model, 30.0) | {key: value}, load_denoiser(model))


def test_scores_that_lack_anything_are_refused(model):
    tree = scores(model, 30.0)
    for key in tree:
        with pytest.raises(UserError, match=rf"\({key}: field required\); evaluate the model with"):
            check_scores({name: value for name, value in tree.items() if name != key}, load_denoiser(model))


def test_tiles_of_the_models_own_are_no_setting_and_others_are(tmp_path, model):
    config = {"method": {"name": "ssdn", "fields": {}}, "net": {"name": "unet_ssdn", "fields": {}}, "noise": "gauss25"}
    method = build_method("ssdn", {}, parse_noise("gauss25"))
    save_model(
        tmp_path / "ssdn",
        method.make_net(NetMaker("unet_ssdn", 3, {})),
        make_card({**config, "train": {"crop": 128}}, 3),
    )
    tags = {
        (folder.name, tile): check_scores(
            scores(folder, 30.0, tile=tile, overlap=tile and 64), load_denoiser(folder)
        ).tags(load_denoiser(folder))["tiles"]
        for folder in (model, tmp_path / "ssdn")
        for tile in (None, 128)
    }
    assert tags == {
        ("model", None): "own",
        ("model", 128): "128, overlap 64",
        ("ssdn", None): "whole images",
        ("ssdn", 128): "own",
    }


def test_an_image_counts_once(model):
    tree = scores(model, 30.0)
    with pytest.raises(UserError, match="list an image twice"):
        check_scores(tree | {"images": tree["images"] * 2}, load_denoiser(model))
