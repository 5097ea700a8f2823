"""Promotion to @champion: its gates, its audit records, and the way back."""

from pathlib import Path

import pytest
import yaml

from denoise.errors import UserError
from pipelines.registry import versions as registry
from pipelines.registry.promotion import promote, rollback
from pipelines.tracking import client as tracking
from tests.pipelines.mlflow_helpers import log_a_model, make_model, new_noise, scores, shared_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def register_versions(uri: str, folder: Path, *evaluations: dict[str, object] | None) -> str:
    """Register one version for each evaluation (the arguments of ``scores``) and return the model's name."""
    noise = new_noise()
    for seed, evaluation in enumerate(evaluations):
        channels = (evaluation or {}).get("channels", 3)
        run_id, model = log_a_model(uri, folder, noise, seed, channels)
        registry.register(uri, model, None if evaluation is None else scores(model, **evaluation), run_id)
    return f"denoise-{noise}"


def stored(uri: str, name: str, version: int = 1) -> Path:
    """Return the folder of a version's logged model."""
    row = registry.show(uri, name)["versions"][version - 1]
    return Path(tracking.client(uri).get_logged_model(row["model_id"]).artifact_location.removeprefix("file://"))


def champion(uri: str, name: str) -> str | None:
    return registry.show(uri, name)["champion"]


def test_the_best_version_is_promoted_and_stays(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 30.5}, {"psnr": 29.0}, None)
    result = promote(uri, name, by="ada")
    assert (result["version"], result["previous"], result["changed"], result["psnr"]) == ("2", None, True, 30.5)
    assert champion(uri, name) == "2"
    for version in (None, 2, "2"):
        assert promote(uri, name, version)["changed"] is False
    assert len(registry.show(uri, name)["moves"]) == 1


@pytest.mark.parametrize(
    ("evaluation", "reasons"),
    [
        ({"psnr": 29.9}, ["it is not better: 29.900 dB on samples under float, champion version 1 30.000 dB"]),
        ({"psnr": 30.0}, ["it is not better"]),
        (None, ["it has no score"]),
        ({"psnr": 40.0, "ssim": 0.79}, ["its SSIM is lower by more than 0.005: 0.7900, champion version 1 0.8000"]),
        (
            {"psnr": 40.0, "protocol": "laine2019"},
            ["protocol is laine2019, that of champion version 1 is float"],
        ),
        (
            {"psnr": 40.0, "data": "kodak", "data_digest": "d2"},
            ["data is kodak, that of champion version 1 is samples", "data_digest is d2"],
        ),
        ({"psnr": 40.0, "passes": 50}, ["passes is 50, that of champion version 1 is 1"]),
        ({"psnr": 40.0, "averaged_over": 8}, ["averaged_over is 8, that of champion version 1 is 1"]),
        (
            {"psnr": 40.0, "tile": 64, "overlap": 32},
            ["tiles is 64, overlap 32, that of champion version 1 is own"],
        ),
        ({"psnr": 40.0, "channels": 1}, ["channels is 1, that of champion version 1 is 3"]),
    ],
)
def test_a_version_that_is_not_better_is_refused(uri, tmp_path, evaluation, reasons):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, evaluation)
    promote(uri, name, 1)
    with pytest.raises(UserError) as refusal:
        promote(uri, name, 2)
    for reason in reasons:
        assert reason in str(refusal.value)
    assert promote(uri, name)["changed"] is False  # nothing comparable is better
    assert champion(uri, name) == "1"


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        ({"psnr": 20.2}, "not better than the noisy images: 20.200 dB on samples under float, they 20.200 dB"),
        ({"psnr": 30.0, "ssim": 0.0}, "its SSIM is lower than that of the noisy images: 0.000, they 0.400"),
    ],
)
def test_a_first_champion_has_to_be_better_than_the_noisy_images(uri, tmp_path, evaluation, reason):
    name = register_versions(uri, tmp_path, evaluation)
    for version in (1, None):
        with pytest.raises(UserError, match=reason):
            promote(uri, name, version)
    assert champion(uri, name) is None


def test_a_little_less_ssim_is_accepted_where_psnr_is_better(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 30.5, "ssim": 0.796})
    promote(uri, name, 1)
    assert promote(uri, name)["version"] == "2"


def test_the_best_version_is_the_best_of_those_that_pass_every_gate(uri, tmp_path):
    name = register_versions(
        uri, tmp_path, {"psnr": 30.0}, {"psnr": 33.0}, {"psnr": 32.0, "ssim": 0.1}, {"psnr": 31.0}, {"psnr": 30.5}
    )
    promote(uri, name, 1)
    (stored(uri, name, 2) / "code" / "denoise" / "rng.py").write_text("print('changed')")
    move = promote(uri, name)
    assert (move["version"], move["changed"]) == ("4", True)
    assert [refusal.partition(":")[0] for refusal in move["refused"]] == ["version 2 is not promoted"]


@pytest.mark.parametrize("change", ["edited", "added", "deleted", "linked"])
def test_changed_code_is_neither_promoted_nor_restored_with_nor_fetched(uri, tmp_path, change):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 31.0})
    promote(uri, name, 2)
    for version in (1, 2):
        file = stored(uri, name, version) / "code" / "denoise" / "rng.py"
        if change == "edited":
            file.write_text(file.read_text() + "\n")
        elif change == "added":
            file.with_name("sitecustomize.py").write_text("")
        elif change == "deleted":
            file.unlink()
        else:
            file.rename(tmp_path / f"rng{version}.py")
            file.symlink_to(tmp_path / f"rng{version}.py")
    with pytest.raises(UserError, match=r"its code, or another file .* was changed after it was logged"):
        promote(uri, name, 1)
    for reference in (f"models:/{name}/1", f"models:/{name}@champion"):
        with pytest.raises(UserError, match="are not the registered ones"):
            registry.model_folder(uri, reference, tmp_path / "cache")
        with pytest.raises(UserError, match="are not the registered ones"):
            registry.fetch_model(uri, reference, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_there_is_no_way_back_to_changed_code(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 31.0})
    promote(uri, name, 1)
    promote(uri, name, 2)
    (stored(uri, name, 1) / "pyfunc_model.py").write_text("import os")
    with pytest.raises(UserError, match="does not go back to version 1: its code"):
        rollback(uri, name)
    assert champion(uri, name) == "2"


def test_what_python_writes_beside_code_that_it_runs_is_no_change(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0})
    cache = stored(uri, name) / "code" / "denoise" / "__pycache__"
    cache.mkdir()
    (cache / "rng.cpython-311.pyc").write_bytes(b"")
    assert promote(uri, name)["changed"] is True
    registry.fetch_model(uri, f"models:/{name}@champion", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.pyc"))


def test_weights_that_are_not_finite_are_refused_whatever_the_tags_say(uri, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.registry.gates.changed_files", lambda root, row: [])  # a registry of another version
    name = register_versions(uri, tmp_path, {"psnr": 30.0})
    weights = stored(uri, name) / "artifacts" / "denoiser" / "net.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(UserError, match=r"weights that are not finite \(enc_conv6"):
        promote(uri, name)


def test_a_version_of_an_older_release_says_what_to_do(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 31.0})
    api = tracking.client(uri)
    for key in ("scored_noise", "channels", "passes", "averaged_over", "tiles"):
        api.delete_model_version_tag(name, "1", key)
    api.delete_model_version_tag(name, "2", "folder_sha256")
    with pytest.raises(UserError, match=r"has scores without scored_noise, .*evaluate it and register it again"):
        promote(uri, name, 1)
    with pytest.raises(UserError, match="code was not recorded when it was logged: train and register it again"):
        promote(uri, name, 2)
    assert registry.model_folder(uri, f"models:/{name}/2", tmp_path / "cache").is_dir()
    with pytest.raises(UserError, match="was registered without a digest of its code"):
        registry.fetch_model(uri, f"models:/{name}/2", tmp_path / "out")
    api.set_registered_model_alias(name, "champion", "1")
    for version in (2, None):
        with pytest.raises(UserError, match="champion version 1.* has scores without"):
            promote(uri, name, version)
    model = make_model(tmp_path / "again", name.removeprefix("denoise-"), seed=0)
    run_id = registry.show(uri, name)["versions"][0]["run_id"]
    registry.register(uri, model, scores(model, 30.0), run_id)
    with pytest.raises(UserError, match="2 is not promoted: the sha256 of its code"):
        promote(uri, name, 2)


def test_a_model_without_signature_example_or_its_own_files_is_refused(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0})
    folder = stored(uri, name)
    metadata = yaml.safe_load((folder / "MLmodel").read_text())
    del metadata["signature"], metadata["saved_input_example_info"]
    (folder / "MLmodel").write_text(yaml.safe_dump(metadata))
    (folder / "artifacts" / "denoiser" / "model.json").write_text("{}")
    with pytest.raises(UserError) as refusal:
        promote(uri, name)
    for reason in ("it has no signature", "it has no input example", "the sha256 of its files is not the registered"):
        assert reason in str(refusal.value)
    assert champion(uri, name) is None


def test_versions_that_were_not_scored_alike_must_be_named(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 33.0, "protocol": "laine2019"})
    with pytest.raises(UserError, match=r"not scored alike, so name the one to promote: 1 \(30\.000 dB.*2 \(33\.000"):
        promote(uri, name)
    assert promote(uri, name, "2")["changed"] is True


def test_no_score_no_version_and_no_model_are_errors(uri, tmp_path):
    name = register_versions(uri, tmp_path, None)
    with pytest.raises(UserError, match=f"no version of {name} has a score"):
        promote(uri, name)
    with pytest.raises(UserError, match="has no version 3: it has 1"):
        promote(uri, name, 3)
    with pytest.raises(UserError, match=rf"no model {name}0 \(did you mean {name}\?\)"):
        promote(uri, f"{name}0")
    with pytest.raises(UserError, match="no earlier champion"):
        rollback(uri, name)


def test_every_move_is_recorded_and_can_be_rolled_back(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 30.5}, {"psnr": 31.0})
    for version in (1, 2, 3):
        promote(uri, name, version, by="ada")
    assert rollback(uri, name, by="bob")["version"] == "2"
    assert rollback(uri, name, by="bob")["version"] == "1"
    with pytest.raises(UserError, match="no earlier champion"):
        rollback(uri, name)
    assert champion(uri, name) == "1"
    moves = registry.show(uri, name)["moves"]
    assert [(move["number"], move["action"], move["who"], move["from"], move["to"]) for move in moves] == [
        (1, "promote", "ada", None, "1"),
        (2, "promote", "ada", "1", "2"),
        (3, "promote", "ada", "2", "3"),
        (4, "rollback", "bob", "3", "2"),
        (5, "rollback", "bob", "2", "1"),
    ]
    assert (moves[1]["psnr"], moves[1]["previous_psnr"], moves[1]["protocol"]) == (30.5, 30.0, "float")
    assert all(move["when"].endswith("+00:00") for move in moves)


def test_a_champion_set_by_hand_can_be_rolled_back(uri, tmp_path):
    name = register_versions(uri, tmp_path, {"psnr": 30.0}, {"psnr": 20.0})
    promote(uri, name, 1)
    tracking.client(uri).set_registered_model_alias(name, "champion", "2")
    assert rollback(uri, name)["version"] == "1"


def test_no_version_is_compared_with_a_champion_without_a_score(uri, tmp_path):
    name = register_versions(uri, tmp_path, None, {"psnr": 30.0})
    tracking.client(uri).set_registered_model_alias(name, "champion", "1")
    with pytest.raises(UserError, match="champion version 1, which has no score"):
        promote(uri, name)
