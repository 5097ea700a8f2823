"""``dvc repro`` from images to a promoted model, in a copy of the project, with few steps."""

import json
import re
import shutil

import pytest


def lock(folder):
    return (folder / "dvc.lock").read_bytes()


def test_every_stage_leaves_what_it_should(checkout, call):
    rows = json.loads((checkout / "metrics.json").read_text())
    assert set(rows) == {"n2c", "n2n"}
    figures = {"method", "noise", "data", "protocol", "noisy_psnr", "psnr", "noisy_ssim", "ssim"}
    assert all(set(row) == figures for row in rows.values())
    assert all(abs(row["noisy_psnr"] - 20.17) < 0.1 for row in rows.values())  # 20 log10(255 / 25)
    assert "<!doctype html>" in (checkout / "report/index.html").read_text()
    assert (checkout / "report/figures/curves.png").is_file()
    models = json.loads(call("denoise", "models", "list", "--json", cwd=checkout))
    assert {model["method"] for model in models} == {"n2c", "n2n"}
    champions = [model for model in models if "champion" in model["aliases"]]
    best = max(rows.values(), key=lambda row: row["psnr"])
    assert [model["method"] for model in champions] == [best["method"]]


def test_a_second_repro_looks_and_does_nothing(checkout, call):
    """It asks which data are there and what MLflow knows; neither has changed."""
    before = lock(checkout)
    output = call("dvc", "repro", cwd=checkout)
    assert re.findall("Running stage '(.*)'", output) == ["versions", "register"]
    assert output.count("didn't change, skipping") == 8
    assert lock(checkout) == before


def test_a_repro_without_mlflow_s_database_registers_and_promotes_again(checkout, call):
    def registered():
        models = json.loads(call("denoise", "models", "list", "--json", cwd=checkout))
        return {(model["method"], model["psnr"], *model["aliases"]) for model in models}

    before = registered()
    for file in checkout.glob("mlflow.db*"):
        file.unlink()
    output = call("dvc", "repro", cwd=checkout)
    assert re.findall("Running stage '(.*)'", output) == ["versions", "register"]
    assert registered() == before
    runs = json.loads(call("denoise", "runs", "list", "--json", cwd=checkout))
    assert {(run["status"], *run["missing"].values()) for run in runs} == {("FINISHED", 0, 0, False, False)}


@pytest.mark.parametrize("gone", [["data"], pytest.param(["data", ".dvc/cache"], marks=pytest.mark.slow)])
def test_deleted_data_comes_back_with_the_same_hashes(checkout, call, one_host, gone):
    before = lock(checkout)
    for name in gone:
        shutil.rmtree(checkout / name)
    call("dvc", "repro", cwd=checkout, **one_host.variables)
    assert lock(checkout) == before
    assert (checkout / "data/shards/train/samples/index.json").is_file()


def test_dvc_shows_metrics_and_git_stays_clean(checkout, call):
    assert "psnr" in call("dvc", "metrics", "show", cwd=checkout)
    changed = call("git", "status", "--porcelain", cwd=checkout).split()
    assert set(changed[1::2]) <= {"dvc.lock", "metrics.json"}


def test_dvc_draws_the_scores_and_names_an_edited_parameter(checkout, call, tmp_path):
    call("dvc", "plots", "show", "-o", str(tmp_path), cwd=checkout)
    page = (tmp_path / "index.html").read_text()
    assert "PSNR on the test sets" in page
    assert "curves.png" in page
    params = checkout / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("steps: 40", "steps: 42"))
        edited = json.loads(call("dvc", "params", "diff", "--json", cwd=checkout))
    finally:
        params.write_text(before)
    assert edited == {"params.yaml": {"train.steps": {"old": 40, "new": 42, "diff": 2}}}


@pytest.mark.slow
def test_an_experiment_runs_only_what_its_parameter_touches(checkout, call):
    """And it leaves what is there: scores under another protocol, the champion, and the score it is compared by."""
    scores = (checkout / "evaluation/n2n/samples/float/scores.json").read_bytes()
    registry = call("denoise", "models", "list", "--json", cwd=checkout)
    output = call("dvc", "exp", "run", "-S", "evaluate.protocol=uint8", cwd=checkout)
    try:
        assert "Stage 'train@n2n' didn't change" in output
        rows = json.loads((checkout / "metrics.json").read_text())
        assert {row["protocol"] for row in rows.values()} == {"uint8"}
        assert (checkout / "evaluation/n2n/samples/float/scores.json").read_bytes() == scores
        assert (checkout / "evaluation/n2n/samples/uint8/scores.json").is_file()
        assert call("denoise", "models", "list", "--json", cwd=checkout) == registry
    finally:
        call("git", "checkout", "-q", "params.yaml", cwd=checkout)
        call("dvc", "repro", cwd=checkout)


def test_the_champion_restores_a_photograph(checkout, call, photographs, tmp_path):
    call("denoise", "restore", str(photographs / "chelsea.png"), "-o", str(tmp_path / "cat.png"), cwd=checkout)
    from denoise.images.io import read_image

    assert read_image(tmp_path / "cat.png").pixels.shape == read_image(photographs / "chelsea.png").pixels.shape
