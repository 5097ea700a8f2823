"""Promotion to @champion: its gates, its audit records, and the way back."""

from pathlib import Path

import pytest
import yaml

from denoise.errors import UserError
from pipelines.registry import versions as registry
from pipelines.registry.promotion import promote, rollback
from pipelines.tracking import client as tracking
from tests.pipelines.mlflow_helpers import log_a_model, scores, shared_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def register_versions(uri: str, folder: Path, noise: str, *evaluations: dict[str, object] | None) -> str:
    """Register one version for each evaluation and return the model's name."""
    for seed, evaluation in enumerate(evaluations):
        run_id, model = log_a_model(uri, folder, noise, seed)
        registry.register(uri, model, evaluation, run_id)
    return f"denoise-{noise}"


def champion(uri: str, name: str) -> str | None:
    return registry.show(uri, name)["champion"]


def test_the_best_version_is_promoted_and_stays(uri, tmp_path):
    name = register_versions(uri, tmp_path, "best", scores(30.0), scores(30.5), scores(29.0), None)
    result = promote(uri, name, by="ada")
    assert (result["version"], result["previous"], result["changed"], result["psnr"]) == ("2", None, True, 30.5)
    assert champion(uri, name) == "2"
    for version in (None, 2, "2"):
        assert promote(uri, name, version)["changed"] is False
    assert len(registry.show(uri, name)["moves"]) == 1


@pytest.mark.parametrize(
    ("noise", "evaluation", "reasons"),
    [
        ("worse", scores(29.9), ["it is not better: 29.900 dB on samples under float, champion version 1 30.000 dB"]),
        ("tie", scores(30.0), ["it is not better"]),
        ("nan", scores(float("nan")), ["it has no score"]),
        ("none", None, ["it has no score"]),
        ("rules", scores(40.0, protocol="laine2019"), ["protocol is laine2019, that of champion version 1 is float"]),
        (
            "sets",
            scores(40.0, data="kodak", data_digest="d2"),
            ["data is kodak, that of champion version 1 is samples", "data_digest is d2"],
        ),
    ],
)
def test_a_version_that_is_not_better_is_refused(uri, tmp_path, noise, evaluation, reasons):
    name = register_versions(uri, tmp_path, noise, scores(30.0), evaluation)
    promote(uri, name, 1)
    with pytest.raises(UserError) as refusal:
        promote(uri, name, 2)
    for reason in reasons:
        assert reason in str(refusal.value)
    assert promote(uri, name)["changed"] is False  # nothing comparable is better
    assert champion(uri, name) == "1"


def test_a_model_without_signature_example_or_its_own_files_is_refused(uri, tmp_path):
    name = register_versions(uri, tmp_path, "format", scores(30.0))
    api = tracking.client(uri)
    row = registry.show(uri, name)["versions"][0]
    folder = Path(api.get_logged_model(row["model_id"]).artifact_location.removeprefix("file://"))
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
    name = register_versions(uri, tmp_path, "mixed", scores(30.0), scores(33.0, protocol="laine2019"))
    with pytest.raises(UserError, match=r"not scored alike, so name the one to promote: 1 \(30\.000 dB.*2 \(33\.000"):
        promote(uri, name)
    assert promote(uri, name, "2")["changed"] is True


def test_no_score_no_version_and_no_model_are_errors(uri, tmp_path):
    name = register_versions(uri, tmp_path, "unscored", None)
    with pytest.raises(UserError, match="no version of denoise-unscored has a score"):
        promote(uri, name)
    with pytest.raises(UserError, match="has no version 3: it has 1"):
        promote(uri, name, 3)
    with pytest.raises(UserError, match=r"no model denoise-unscord \(did you mean denoise-unscored\?\)"):
        promote(uri, "denoise-unscord")
    with pytest.raises(UserError, match="no earlier champion"):
        rollback(uri, name)


def test_every_move_is_recorded_and_can_be_rolled_back(uri, tmp_path):
    name = register_versions(uri, tmp_path, "moves", scores(30.0), scores(30.5), scores(31.0))
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
    name = register_versions(uri, tmp_path, "hand", scores(30.0), scores(20.0))
    promote(uri, name, 1)
    tracking.client(uri).set_registered_model_alias(name, "champion", "2")
    assert rollback(uri, name)["version"] == "1"


def test_no_version_is_compared_with_a_champion_without_a_score(uri, tmp_path):
    name = register_versions(uri, tmp_path, "blank", None, scores(30.0))
    tracking.client(uri).set_registered_model_alias(name, "champion", "1")
    with pytest.raises(UserError, match="champion version 1 has no score to compare with"):
        promote(uri, name)
