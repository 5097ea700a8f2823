"""A run that ``--name`` continues is the run of that name, or is refused before anything is written."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from denoise.config import flatten, load_config, to_dict
from denoise.errors import UserError
from denoise.files import file_digest
from pipelines.datasets.layout import shard_folder
from pipelines.tracking.runs import RunSpec, get_or_create_run
from pipelines.training.identity import changed_settings
from pipelines.training.named_run import refuse_mlflow_run
from tests.pipelines.cli_helpers import sentence
from tests.pipelines.mlflow_helpers import shared_uri

SMALL = ["net=cnn5", "train.steps=2", "train.batch_size=2", "train.crop=16"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory, denoise_fork, small_shards):
    """A project with a run of two steps, for --local and for Ray."""
    folder = tmp_path_factory.mktemp("begun")
    for split in ("train", "val"):
        shutil.copytree(small_shards, shard_folder(folder / "data", split, "small"))
    (folder / "params.yaml").write_text("data: {train: small, val: small, test: []}\ntrain: {precision: fp32}\n")
    train(denoise_fork, folder, "--local", *SMALL)
    shutil.copytree(folder / "runs/own/checkpoints", folder / "runs/ray/own/checkpoints")
    return folder


@pytest.fixture
def project(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "project")


def train(denoise_fork, folder, *arguments, code=0, **variables):
    command = [*denoise_fork, "train", "--name", "own", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=100)
    assert done.returncode == code, done.stderr
    return done.stderr


def state(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("mlflow.db"))
    return {str(path): path.read_bytes() for path in files}


def card(folder):
    return json.loads((folder / "runs/own/model/model.json").read_text())


@pytest.mark.parametrize(
    ("how", "variables"),
    [(["--local"], {}), ([], {}), ([], {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2"})],
    ids=["local", "ray", "torchrun"],
)
def test_other_settings_are_refused_by_name_and_nothing_is_written(project, denoise_fork, how, variables):
    before = state(project)
    changes = ["noise=gauss50", "method=n2c", "train.lr=0.1", "train.steps=4", "data.colour=grey", "data.url=null"]
    message = sentence(train(denoise_fork, project, *how, *SMALL, *changes, code=1, **variables))
    assert "the run own was begun with other settings (" in message
    for change in ("noise: gauss25, now gauss50", "method: n2n, now n2c", "train.lr: 0.001, now 0.1"):
        assert change in message
    assert "data.colour: rgb, now grey" in message
    assert "train.steps" not in message  # more steps alone would go on
    assert state(project) == before


def test_another_net_is_refused_and_fewer_steps_are(project, denoise_fork):
    message = sentence(train(denoise_fork, project, "--local", *SMALL, "net=dncnn", code=1))
    assert "(net: cnn5, now dncnn)" in message
    assert "(train.steps: 2, now 1)" in sentence(
        train(denoise_fork, project, "--local", *SMALL, "train.steps=1", code=1)
    )


def test_other_training_images_are_refused(project, denoise_fork):
    train_shards = project / "data/shards/train"
    shutil.copytree(train_shards / "small", train_shards / "same")
    train(denoise_fork, project, "--local", *SMALL, "data.train=same")  # the same images under another name
    index = train_shards / "small" / "index.json"
    index.write_text(index.read_text() + "\n")  # the same shards, but another version of the index
    message = sentence(train(denoise_fork, project, "--local", *SMALL, code=1))
    assert "(the images of data.train=small have changed)" in message
    assert "data.train: small, now small,same" in sentence(
        train(denoise_fork, project, "--local", *SMALL, "data.train=small,same", code=1)
    )


def test_a_model_whose_checkpoints_are_gone_is_not_replaced_by_another(project, denoise_fork):
    shutil.rmtree(project / "runs/own/checkpoints")
    before = state(project)
    assert "noise: gauss25, now gauss50" in train(denoise_fork, project, "--local", *SMALL, "noise=gauss50", code=1)
    assert state(project) == before


def test_more_steps_go_on_and_the_card_tells_it(project, denoise_fork):
    elsewhere = ["train.log_every=1", "train.eval_every=4", "ray.workers=1", "tracking.experiment=other"]
    error = train(denoise_fork, project, "--local", *SMALL, "train.steps=4", *elsewhere)
    assert "begun with train.steps=2, it goes on with the schedule of 4" in error
    assert "resuming from step-00000002" in error
    train(denoise_fork, project, "--local", *SMALL, "train.steps=4")
    assert [part["steps"] for part in card(project)["provenance"]["earlier"]] == [2]
    train(denoise_fork, project, "--local", *SMALL, "train.steps=5")
    assert [part["steps"] for part in card(project)["provenance"]["earlier"]] == [2, 4]


def test_other_code_goes_on_and_the_card_tells_it(project, denoise_fork):
    """As promised for runs that an earlier version has begun."""
    checkpoint = project / "runs/own/checkpoints/step-00000002"
    tree = json.loads((checkpoint / "model.json").read_text())
    tree["provenance"]["code_digest"] = "0" * 64
    (checkpoint / "model.json").write_text(json.dumps(tree))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["model.json"] = file_digest(checkpoint / "model.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    error = train(denoise_fork, project, "--local", *SMALL, "train.steps=3")
    assert "goes on with other code" in error
    assert card(project)["provenance"]["earlier"] == [{"code_digest": "0" * 64, "steps": 2}]


@pytest.mark.parametrize(
    ("how", "name"),
    [(["--local"], "../own"), (["--local"], "/tmp/own"), (["--local"], "a/b"), ([], "../own"), ([], "..")],
)
def test_a_name_cannot_lead_out_of_its_folder(project, denoise_fork, how, name):
    before = state(project)
    done = [*how, *SMALL, f"--name={name}"]
    assert f"--name is {name!r}, which cannot be a name" in sentence(train(denoise_fork, project, *done, code=1))
    assert state(project) == before


@pytest.mark.parametrize("how", [["--local"], []])
def test_what_is_not_a_model_is_not_replaced_by_one(project, denoise_fork, how):
    (project / "photographs").mkdir()
    (project / "photographs" / "a.png").write_bytes(b"mine")
    (project / "file").write_text("mine")
    before = state(project)
    for out, message in (("photographs", "photographs holds a.png"), ("file", "is no folder"), (".", "by its name")):
        assert message in sentence(train(denoise_fork, project, *how, *SMALL, f"--out={out}", code=1))
    assert state(project) == before
    train(denoise_fork, project, "--local", *SMALL, "--out=runs/own/model")  # a model is


def test_what_may_change_under_a_name():
    stored = to_dict(load_config(None, []))
    free = [
        "ray.workers=8",
        "tracking.uri=http://h:1",
        "data.root=there",
        "data.url=s3://user:secret@h/x",
        "compare=n2v",
    ]
    free += ["train.model=best", "train.micro_batch=2", "train.compile=true", "evaluate.protocol=uint8"]
    assert changed_settings(stored, load_config(None, [*free, "train.steps=501"])) == []
    fixed = ["seed=1", "train.batch_size=8", "train.crop=32", "train.precision=bf16", "data.fixed_noise=true"]
    fixed += ["method.loss_name=l1", "train.steps=499"]
    for setting in fixed:
        key, _, value = setting.partition("=")
        (change,) = changed_settings(stored, load_config(None, [setting]))
        assert change.startswith(f"{key}: ")
        assert change.lower().endswith(f", now {value}")


def test_a_card_of_another_version_is_compared_by_what_it_has():
    tree = to_dict(load_config(None, []))
    tree["data"]["crops_per_picture"] = tree["data"].pop("crops_per_image")  # as in 0.1.0
    tree["train"] |= {"crop": 64, "momentum": 0.9, "weight_decay": 0.0}  # 0.1.0 had neither auto nor null
    for key in ("model", "val_images", "train_psnr"):
        del tree["train"][key]
    assert changed_settings(tree, load_config(None, [])) == []
    assert changed_settings(tree, load_config(None, ["data.crops_per_image=4"])) == ["data.crops_per_image: 1, now 4"]


def test_the_mlflow_run_of_another_training_is_not_continued(tmp_path_factory):
    """Where the checkpoints of that run are elsewhere."""

    def spec(config, name="taken", digest="0"):
        uri = shared_uri(tmp_path_factory)
        return RunSpec(uri, "named", name, tags={"data_digest": digest}, params=flatten(to_dict(config)))

    config, other = load_config(None, []), load_config(None, ["noise=gauss50", "train.steps=3"])
    get_or_create_run(spec(config))
    refuse_mlflow_run(load_config(None, ["train.steps=900"]), spec(load_config(None, ["train.steps=900"])))
    refuse_mlflow_run(other, spec(other, "free"))
    with pytest.raises(
        UserError, match=r"run taken in MLflow was begun with other settings \(noise: gauss25, now gauss50\)"
    ):
        refuse_mlflow_run(other, spec(other))
    with pytest.raises(UserError, match=r"\(other training images\)"):
        refuse_mlflow_run(config, spec(config, digest="1"))
