"""Names that lead out of a folder, and numbers that are none: one sentence, and nothing outside is touched."""

import subprocess

import pytest

from tests.mutations import Victim
from tests.pipelines.cli_helpers import sentence

OUT = "../../x"
COMMANDS = {
    "shard own images": ["shard", OUT, "--from", "images"],
    "shard": ["shard", "../x"],
    "shard a folder of the user's": ["shard", "/etc", "--from", "images"],
    "shard another split": ["shard", "mine", "--from", "images", "--split", OUT],
    "fetch": ["fetch", OUT],
    "fetch another split": ["fetch", "kodak", "--split", OUT],
    "show": ["data", "show", OUT],
    "verify": ["data", "verify", OUT],
    "push": ["data", "push", OUT, "-S", "data.url=there"],
    "pull": ["data", "pull", OUT, "-S", "data.url=there"],
    "verify there": ["data", "verify", OUT, "--split", "train", "-S", "data.url=there"],
    "train by a name": ["train", "--local", "--name", OUT],
    "train on Ray by a name": ["train", "--name", OUT],
    "tune by a name": ["tune", "ee559-random", "--name", OUT],
    "resume": ["tune", "--resume", OUT],
    "sync": ["runs", "sync", OUT],
    "train on": ["train", "--local", f"data.train=[{OUT}]"],
    "evaluate on": ["evaluate", "bm3d", "--data", OUT],
    "train on nothing": ["train", "--local", "data.train=[]"],
    "an infinite rate": ["train", "--local", "train.lr=.inf"],
    "no rate": ["train", "--local", "train.lr=.nan"],
    "endless steps": ["train", "--local", "train.steps=1" + "0" * 400],
    "an endless seed": ["train", "--local", "seed=1" + "0" * 400],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_name_that_leads_out_is_one_sentence(project, denoise_fork, small_images, arguments):
    victim = Victim(project)
    (project / "images").symlink_to(small_images)
    (project / "there").mkdir()
    before = sorted(project.rglob("*"))
    done = subprocess.run([*denoise_fork, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert len(sentence(done.stderr)) < 400
    assert victim.is_there()
    assert [path for path in sorted(project.rglob("*")) if path not in before and path.name != "optuna.db"] == []
    assert not (project.parent / "x").exists()


@pytest.mark.parametrize("text", ["[" * 5000, "a: &a [*a]\n", "9" * 9000, "train: {lr: .inf}", "seed: 2020-01-01"])
def test_a_file_of_settings_that_lies_is_one_sentence(project, denoise_fork, text):
    (project / "params.yaml").write_text(text)
    (project / "space.yaml").write_text(text)
    for arguments in (["train", "--local"], ["evaluate", "bm3d"], ["tune", "space.yaml"]):
        done = subprocess.run([*denoise_fork, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode in (1, 2)
        assert len(sentence(done.stderr)) < 400
