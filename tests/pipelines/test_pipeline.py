"""``dvc repro`` from images to a promoted model, in a copy of the project, with few steps."""

import json
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


def test_a_second_repro_does_nothing(checkout, call):
    before = lock(checkout)
    assert "Data and pipelines are up to date" in call("dvc", "repro", cwd=checkout)
    assert lock(checkout) == before


@pytest.mark.parametrize("gone", [["data"], pytest.param(["data", ".dvc/cache"], marks=pytest.mark.slow)])
def test_deleted_data_comes_back_with_the_same_hashes(checkout, call, gone):
    before = lock(checkout)
    for name in gone:
        shutil.rmtree(checkout / name)
    call("dvc", "repro", cwd=checkout)
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
        params.write_text(before.replace("steps: 10", "steps: 12"))
        edited = json.loads(call("dvc", "params", "diff", "--json", cwd=checkout))
    finally:
        params.write_text(before)
    assert edited == {"params.yaml": {"train.steps": {"old": 10, "new": 12, "diff": 2}}}


@pytest.mark.slow
def test_an_experiment_runs_only_what_its_parameter_touches(checkout, call):
    output = call("dvc", "exp", "run", "-S", "evaluate.protocol=uint8", cwd=checkout)
    try:
        assert "Stage 'train@n2n' didn't change" in output
        rows = json.loads((checkout / "metrics.json").read_text())
        assert {row["protocol"] for row in rows.values()} == {"uint8"}
    finally:
        call("git", "checkout", "-q", "params.yaml", cwd=checkout)
        call("dvc", "repro", cwd=checkout)


def test_the_champion_restores_a_photograph(checkout, call, photographs, tmp_path):
    call("denoise", "restore", str(photographs / "chelsea.png"), "-o", str(tmp_path / "cat.png"), cwd=checkout)
    from denoise.images.io import read_image

    assert read_image(tmp_path / "cat.png").pixels.shape == read_image(photographs / "chelsea.png").pixels.shape
