"""The model registry: versions with their scores, and models by reference."""

import json
import shutil
from pathlib import Path

import pytest

from denoise.errors import UserError
from pipelines.registry import versions as registry
from pipelines.registry.promotion import promote
from pipelines.tracking import client as tracking
from tests.pipelines.mlflow_helpers import log_a_model, make_model, new_noise, scores, shared_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_a_model_becomes_a_version_with_its_scores(uri, tmp_path):
    noise = new_noise()
    name = f"denoise-{noise}"
    run_id, model = log_a_model(uri, tmp_path, noise)
    row = registry.register(uri, model, scores(model, 30.25), run_id)
    assert (row["name"], row["version"], row["aliases"]) == (name, "1", [])
    assert (row["method"], row["noise"], row["protocol"], row["data"]) == ("n2n", noise, "float", "samples")
    assert (row["psnr"], row["noisy_psnr"], row["run_id"]) == (30.25, 20.2, run_id)
    assert json.loads(json.dumps(row)) == row

    again = registry.register(uri, model, scores(model, 30.5, protocol="laine2019"), run_id)
    assert again == row | {"psnr": 30.5, "protocol": "laine2019"}
    assert [entry for entry in registry.list_models(uri) if entry["name"] == name] == [again]
    assert registry.show(uri, name) == {
        "name": name,
        "champion": None,
        "versions": [again],
        "moves": [],
    }
    card = tracking.client(uri).get_model_version(name, "1").description
    assert "| PSNR (dB) | 20.200 | 30.500 |" in card
    assert f"--model models:/{name}/1" in card


def test_a_model_without_scores_is_registered_and_gets_them_later(uri, tmp_path):
    run_id, model = log_a_model(uri, tmp_path, new_noise())
    assert registry.register(uri, model, None, run_id)["psnr"] is None
    assert registry.register(uri, model, scores(model, 31.0), run_id)["psnr"] == 31.0


def test_another_training_is_another_version(uri, tmp_path):
    noise = new_noise()
    for seed, psnr in enumerate([30.0, 29.0]):
        run_id, model = log_a_model(uri, tmp_path, noise, seed)
        registry.register(uri, model, scores(model, psnr), run_id)
    versions = registry.show(uri, f"denoise-{noise}")["versions"]
    assert [(row["version"], row["psnr"]) for row in versions] == [("1", 30.0), ("2", 29.0)]


def test_only_what_its_run_has_logged_is_registered(uri, tmp_path):
    noise = new_noise()
    run_id, _ = log_a_model(uri, tmp_path, noise)
    other = make_model(tmp_path / "other", noise, seed=7)
    with pytest.raises(UserError, match="has not logged the model"):
        registry.register(uri, other, scores(other, 30.0), run_id)
    with pytest.raises(UserError, match="is no model folder"):
        registry.register(uri, tmp_path, None, run_id)


def test_a_model_is_fetched_by_path_version_and_alias(uri, tmp_path):
    noise = new_noise()
    run_id, model = log_a_model(uri, tmp_path, noise)
    registry.register(uri, model, scores(model, 30.0), run_id)
    tracking.client(uri).set_registered_model_alias(f"denoise-{noise}", "champion", "1")
    assert registry.model_folder(uri, str(model)) == model
    for reference in (f"models:/denoise-{noise}/1", f"models:/denoise-{noise}@champion"):
        folder = registry.model_folder(uri, reference, tmp_path / "cache")
        for name in ("model.json", "net.safetensors"):
            assert (folder / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/denoise-poisson7.x/1", r"no model denoise-poisson7.x \(did you mean denoise-poisson7\?\)"),
        ("models:/denoise-poisson7/7", "has no version 7: it has 1"),
        ("models:/denoise-poisson7@champoin", r"no alias champoin \(did you mean champion\?\)"),
        ("models:/denoise-poisson7", "is no model: write models:/NAME@ALIAS"),
        ("models:/denoise-poisson7@champion/x", "is no model: write models:/NAME@ALIAS"),
    ],
)
def test_a_reference_to_nothing_is_an_error(uri, tmp_path, reference, message):
    run_id, model = log_a_model(uri, tmp_path, "poisson7")
    registry.register(uri, model, None, run_id)
    tracking.client(uri).set_registered_model_alias("denoise-poisson7", "champion", "1")
    with pytest.raises(UserError, match=message):
        registry.model_folder(uri, reference)


def test_a_folder_without_a_model_is_an_error(uri, tmp_path):
    make_model(tmp_path / "n2n" / "model", "path")
    with pytest.raises(UserError, match=r"no model folder .*; did you mean .*n2n/model\?"):
        registry.model_folder(uri, str(tmp_path / "n2n"))
    with pytest.raises(UserError, match="no model folder"):
        registry.model_folder(uri, str(tmp_path / "nothing"))


def test_changed_and_missing_files_are_errors(uri, tmp_path):
    noise = new_noise()
    run_id, model = log_a_model(uri, tmp_path, noise)
    row = registry.register(uri, model, scores(model, 30.0), run_id)
    location = tracking.client(uri).get_logged_model(row["model_id"]).artifact_location
    stored = Path(location.removeprefix("file://"))
    weights = stored / "artifacts" / "denoiser" / "net.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=f"files of denoise-{noise} version 1 are not the registered ones"):
        registry.model_folder(uri, f"models:/denoise-{noise}/1", tmp_path / "cache")
    stored.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="are gone from"):
        registry.model_folder(uri, f"models:/denoise-{noise}/1", tmp_path / "cache")


def source_forms(folder: Path, run_id: str) -> dict[str, str]:
    return {
        "folder": str(folder),
        "address of a folder": folder.as_uri(),
        "run": f"runs:/{run_id}/model",
        "artifacts": f"mlflow-artifacts:/0/{run_id}/artifacts/model",
        "version": "models:/{name}/1",
        "bucket": "s3://bucket/model",
    }


@pytest.mark.parametrize("form", source_forms(Path("/x"), ""))
def test_a_version_that_denoise_has_not_registered_is_refused_and_its_folder_stays(uri, tmp_path, form):
    noise = new_noise()
    name = f"denoise-{noise}"
    run_id, model = log_a_model(uri, tmp_path, noise)
    row = registry.register(uri, model, scores(model, 30.0), run_id)
    folder = tmp_path / "my model"
    shutil.copytree(model, folder / "artifacts" / "denoiser")
    (folder / "notes.txt").write_text("mine")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    tags = {key: str(value) for key, value in row.items() if isinstance(value, str | float)} | {
        "model_sha256": "0" * 64
    }
    with registry._default_uri(uri):
        made = tracking.client(uri).create_model_version(
            name, source_forms(folder, run_id)[form].replace("{name}", name), tags=tags
        )
    reference = f"models:/{name}/{made.version}"
    (tmp_path / "cache").mkdir()
    for use in (
        lambda: registry.model_folder(uri, reference, tmp_path / "cache"),
        lambda: registry.fetch_model(uri, reference, tmp_path / "out", tmp_path / "cache"),
        lambda: promote(uri, name, made.version),
    ):
        with pytest.raises(UserError, match=r"not registered by"):
            use()
    (tmp_path / "cache").rmdir()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert registry.show(uri, name)["versions"][-1]["model_id"] is None


def test_what_lies_at_a_models_place_in_the_cache_is_deleted_only_there(uri, tmp_path):
    noise = new_noise()
    run_id, model = log_a_model(uri, tmp_path, noise)
    row = registry.register(uri, model, None, run_id)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / row["model_id"]).symlink_to(mine)
    assert registry.model_folder(uri, f"models:/denoise-{noise}/1", tmp_path / "cache").is_dir()
    assert (mine / "file").read_text() == "mine"


def test_a_fetched_model_predicts_with_the_code_that_was_checked(uri, tmp_path):
    noise = new_noise()
    run_id, model = log_a_model(uri, tmp_path, noise)
    registry.register(uri, model, None, run_id)
    reference, out = f"models:/denoise-{noise}/1", tmp_path / "out"
    for _ in range(2):
        assert registry.fetch_model(uri, reference, out)["version"] == "1"
    assert (out / "MLmodel").is_file()
    assert (out / "code" / "denoise" / "denoiser.py").is_file()
    (out / "pyfunc_model.py").write_text("import os")
    with pytest.raises(UserError, match="exists and is not this model"):
        registry.fetch_model(uri, reference, out)
    assert (out / "pyfunc_model.py").read_text() == "import os"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="exists and is not this model"):
        registry.fetch_model(uri, reference, tmp_path / "file")


def test_a_model_that_cannot_be_loaded_is_not_registered(uri, tmp_path):
    run_id, model = log_a_model(uri, tmp_path, new_noise())
    weights = model / "net.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x7f")
    with pytest.raises(UserError, match="weights that are not finite"):
        registry.register(uri, model, None, run_id)


def test_a_model_that_an_older_release_logged_is_logged_again(uri, tmp_path):
    noise = new_noise()
    run_id, model = log_a_model(uri, tmp_path, noise)
    row = registry.register(uri, model, None, run_id)
    api = tracking.client(uri)
    api.delete_logged_model_tag(row["model_id"], "folder_sha256")
    api.delete_model_version_tag(row["name"], "1", "folder_sha256")
    assert registry.register(uri, model, scores(model, 30.0), run_id)["version"] == "1"  # its scores can be replaced
    log_a_model(uri, tmp_path, noise)
    again = registry.register(uri, model, scores(model, 30.5), run_id)
    assert (again["version"], again["psnr"]) == ("2", 30.5)
    assert [version["psnr"] for version in registry.show(uri, row["name"])["versions"]] == [30.5, 30.5]
    assert registry.register(uri, model, scores(model, 30.5), run_id)["version"] == "2"
