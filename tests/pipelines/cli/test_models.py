"""``denoise models`` as the pipeline calls it: MLflow learns again what it lacks, and experiments promote nothing."""

import json

import pytest


@pytest.fixture
def trained(project, call, small_shards):
    """A project with a trained and scored model, where MLflow knows nothing."""
    settings = ["method=n2n", "net=cnn5", "train.steps=40", "train.eval_every=20", "train.checkpoint_every=40"]
    call("denoise", "train", "--local", *settings, "--out", "models/n2n", cwd=project)
    (project / "data/shards/test").mkdir()
    (project / "data/shards/test/small").symlink_to(small_shards)
    allow = ["-S", "data.test=small", "-S", "data.allow_overlap=small"]
    for protocol in ("float", "uint8"):
        call(
            "denoise", "evaluate", "models/n2n", *allow, "--protocol", protocol, "--out", "evaluation/n2n", cwd=project
        )
    return project


@pytest.mark.slow
def test_models_are_registered_again_and_experiments_leave_the_champion(trained, call):
    def models(*arguments, **variables):
        return call(
            "denoise", "models", *arguments, "-S", "compare=n2n", "-S", "data.test=small", cwd=trained, **variables
        )

    def registered(*settings, **variables):
        models("register", "--out", "registered", *settings, **variables)
        return json.loads((trained / "registered/n2n.json").read_text())

    # An experiment registers what is new, with its scores; it does not promote it.
    first = registered(DVC_EXP_NAME="odd-name")
    assert first["protocol"] == "float"
    said = models("promote", "denoise-gauss25", "--out", "champion.json", DVC_EXP_NAME="odd-name")
    assert "the experiment odd-name leaves @champion alone" in said
    assert "denoise models promote denoise-gauss25" in said
    assert json.loads((trained / "champion.json").read_text())["method"] is None
    (trained / "champion.json").unlink()
    said = models("register", "--out", "registered", "--champion", "champion.json")
    assert "denoise-gauss25 version 1 is now @champion" in said
    assert json.loads((trained / "champion.json").read_text())["method"] == "n2n"
    assert "@champion" not in models("register", "--out", "registered", "--champion", "champion.json")  # nothing new

    # The scores by which the champion is compared stay in an experiment.
    uint8 = ["-S", "evaluate.protocol=uint8"]
    assert registered(*uint8, DVC_EXP_NAME="odd-name") == first == registered()
    assert registered(*uint8) == {**first, **{key: registered(*uint8)[key] for key in ("protocol", "psnr", "ssim")}}
    before = json.loads(models("list", "--json"))
    assert [model["aliases"] for model in before] == [["champion"]]

    # Without MLflow's database there is another run, with all that was logged.
    for file in trained.glob("mlflow.db*"):
        file.unlink()
    again = registered(*uint8)
    assert again.pop("run_id") != first["run_id"]
    assert again.items() <= registered(*uint8).items()
    missing = json.loads(call("denoise", "runs", "list", "--json", cwd=trained))[0]["missing"]
    assert not any(missing.values())
