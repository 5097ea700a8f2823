"""The model registry: versions with their scores, and models by reference."""

import json
from pathlib import Path

import pytest

from denoise.errors import UserError
from pipelines.registry import versions as registry
from pipelines.tracking import client as tracking
from tests.pipelines.mlflow_helpers import log_a_model, make_model, scores, shared_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_a_model_becomes_a_version_with_its_scores(uri, tmp_path):
    run_id, model = log_a_model(uri, tmp_path, "reg25")
    row = registry.register(uri, model, scores(30.25), run_id)
    assert (row["name"], row["version"], row["aliases"]) == ("denoise-reg25", "1", [])
    assert (row["method"], row["noise"], row["protocol"], row["data"]) == ("n2n", "reg25", "float", "samples")
    assert (row["psnr"], row["noisy_psnr"], row["run_id"]) == (30.25, 20.2, run_id)
    assert json.loads(json.dumps(row)) == row

    again = registry.register(uri, model, scores(30.5, protocol="laine2019"), run_id)
    assert again == row | {"psnr": 30.5, "protocol": "laine2019"}
    assert [entry for entry in registry.list_models(uri) if entry["name"] == "denoise-reg25"] == [again]
    assert registry.show(uri, "denoise-reg25") == {
        "name": "denoise-reg25",
        "champion": None,
        "versions": [again],
        "moves": [],
    }
    card = tracking.client(uri).get_model_version("denoise-reg25", "1").description
    assert "| PSNR (dB) | 20.200 | 30.500 |" in card
    assert "--model models:/denoise-reg25/1" in card


def test_a_model_without_scores_is_registered_and_gets_them_later(uri, tmp_path):
    run_id, model = log_a_model(uri, tmp_path, "later")
    assert registry.register(uri, model, None, run_id)["psnr"] is None
    assert registry.register(uri, model, scores(31.0), run_id)["psnr"] == 31.0


def test_another_training_is_another_version(uri, tmp_path):
    for seed, psnr in enumerate([30.0, 29.0]):
        run_id, model = log_a_model(uri, tmp_path, "two", seed)
        registry.register(uri, model, scores(psnr), run_id)
    versions = registry.show(uri, "denoise-two")["versions"]
    assert [(row["version"], row["psnr"]) for row in versions] == [("1", 30.0), ("2", 29.0)]


def test_only_what_its_run_has_logged_is_registered(uri, tmp_path):
    run_id, _ = log_a_model(uri, tmp_path, "own")
    other = make_model(tmp_path / "other", "own", seed=7)
    with pytest.raises(UserError, match="has not logged the model"):
        registry.register(uri, other, scores(30.0), run_id)
    with pytest.raises(UserError, match="is no model folder"):
        registry.register(uri, tmp_path, scores(30.0), run_id)


def test_a_model_is_fetched_by_path_version_and_alias(uri, tmp_path):
    run_id, model = log_a_model(uri, tmp_path, "fetched")
    registry.register(uri, model, scores(30.0), run_id)
    tracking.client(uri).set_registered_model_alias("denoise-fetched", "champion", "1")
    assert registry.model_folder(uri, str(model)) == model
    for reference in ("models:/denoise-fetched/1", "models:/denoise-fetched@champion"):
        folder = registry.model_folder(uri, reference, tmp_path / "cache")
        for name in ("model.json", "net.safetensors"):
            assert (folder / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/denoise-mssing/1", r"no model denoise-mssing \(did you mean denoise-missing\?\).*denoise-missing"),
        ("models:/denoise-missing/7", "has no version 7: it has 1"),
        ("models:/denoise-missing@champoin", r"no alias champoin \(did you mean champion\?\)"),
        ("models:/denoise-missing", "is no model: write models:/NAME@ALIAS"),
        ("models:/denoise-missing@champion/x", "is no model: write models:/NAME@ALIAS"),
    ],
)
def test_a_reference_to_nothing_is_an_error(uri, tmp_path, reference, message):
    run_id, model = log_a_model(uri, tmp_path, "missing")
    registry.register(uri, model, None, run_id)
    tracking.client(uri).set_registered_model_alias("denoise-missing", "champion", "1")
    with pytest.raises(UserError, match=message):
        registry.model_folder(uri, reference)


def test_a_folder_without_a_model_is_an_error(uri, tmp_path):
    make_model(tmp_path / "n2n" / "model", "path")
    with pytest.raises(UserError, match=r"no model folder .*; did you mean .*n2n/model\?"):
        registry.model_folder(uri, str(tmp_path / "n2n"))
    with pytest.raises(UserError, match="no model folder"):
        registry.model_folder(uri, str(tmp_path / "nothing"))


def test_changed_and_missing_files_are_errors(uri, tmp_path):
    run_id, model = log_a_model(uri, tmp_path, "changed")
    row = registry.register(uri, model, scores(30.0), run_id)
    location = tracking.client(uri).get_logged_model(row["model_id"]).artifact_location
    stored = Path(location.removeprefix("file://"))
    weights = stored / "artifacts" / "denoiser" / "net.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"files of denoise-changed version 1 are not the registered ones"):
        registry.model_folder(uri, "models:/denoise-changed/1", tmp_path / "cache")
    stored.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="are gone from"):
        registry.model_folder(uri, "models:/denoise-changed/1", tmp_path / "cache")
