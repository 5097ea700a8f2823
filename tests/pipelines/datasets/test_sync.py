"""Push, pull and verify against a real server of the S3 protocol; training from it while it fails."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from denoise.config import load_config
from denoise.errors import UserError
from denoise.files import file_digest
from pipelines.datasets import sync
from pipelines.datasets.layout import open_set
from pipelines.storage import base as storage
from pipelines.storage.s3 import S3Remote
from tests.pipelines.s3_helpers import Network, s3_environment


@pytest.fixture(autouse=True)
def no_pause(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("DENOISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(project, s3, monkeypatch):
    with s3_environment(monkeypatch, s3.port):
        yield load_config(Path("params.yaml"), ["data.url=s3://bucket/sets"])


def digests(folder):
    return {path.name: file_digest(path) for path in folder.iterdir()}


def objects(s3):
    listed = s3.client().list_objects_v2(Bucket="bucket").get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in listed}


def test_push_and_pull_copy_the_same_bytes(config, s3, project, capsys):
    assert sync.push(config, "small", "train") == "s3://bucket/sets/train/small"
    here = digests(project / "data/shards/train/small")
    assert {key.rpartition("/")[2] for key in objects(s3)} == set(here)
    shutil.rmtree(project / "data/shards/train/small")
    assert digests(sync.pull(config, "small", "train")) == here
    assert sync.verify(config, "small", "train") == []
    capsys.readouterr()


def test_existing_files_are_not_sent_again(config, s3, monkeypatch):
    sync.push(config, "small", "train")
    sent = []
    monkeypatch.setattr(S3Remote, "send", lambda place, source, path: sent.append(path))
    sync.push(config, "small", "train")
    assert sent == ["train/small/index.json"]


def test_a_partly_pushed_set_is_not_found(config, monkeypatch):
    class Killed(BaseException):
        pass

    send = S3Remote.send

    def die(place, source, path):
        if path.endswith("index.json"):
            raise Killed
        send(place, source, path)

    monkeypatch.setattr(S3Remote, "send", die)
    with pytest.raises(Killed):
        sync.push(config, "small", "train")
    with pytest.raises(UserError, match="denoise data push"):
        open_set(config, "train", "small")
    monkeypatch.setattr(S3Remote, "send", send)
    sync.push(config, "small", "train")
    assert len(open_set(config, "train", "small")) == 5


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damage_at_the_remote_is_reported(config, s3, project, harm):
    sync.push(config, "small", "train")
    key, client = "sets/train/small/000001.tar", s3.client()
    data = client.get_object(Bucket="bucket", Key=key)["Body"].read()
    if harm == "gone":
        client.delete_object(Bucket="bucket", Key=key)
    else:
        harmed = data[:-512] if harm == "cut" else data[:700] + bytes([data[700] ^ 1]) + data[701:]
        client.put_object(Bucket="bucket", Key=key, Body=harmed)
    (problem,) = sync.verify(config, "small", "train")
    assert "000001.tar" in problem
    before = digests(project / "data/shards/train/small")
    (project / "data/shards/train/small/000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar"):
        sync.pull(config, "small", "train")
    assert digests(project / "data/shards/train/small").items() < before.items()  # what was there stays


def test_local_damage_is_reported_and_not_pushed(config, s3, project):
    folder = project / "data/shards/train/small"
    (folder / "000000.tar").write_bytes((folder / "000000.tar").read_bytes()[:-1])
    (folder / "stray").write_text("")
    local = load_config(Path("params.yaml"))
    problems = sync.verify(local, "small", "train")
    assert len(problems) == 2
    assert "000000.tar has" in problems[0]
    assert "stray is not in the index" in problems[1]
    with pytest.raises(UserError, match="are damaged"):
        sync.push(config, "small", "train")
    assert objects(s3) == {}


def test_a_push_without_an_address_is_a_user_error(project):
    with pytest.raises(UserError, match=r"data\.url is not set"):
        sync.push(load_config(Path("params.yaml")), "small", "train")


STEPS = [
    "train.steps=60",
    "train.checkpoint_every=20",
    "train.log_every=5",
    "train.eval_every=60",
    "data.streams=1",
    "data.window=1",
]


@pytest.mark.slow
def test_training_from_a_server_that_fails(config, s3, project, denoise, tmp_path):
    """Two workers, a cache smaller than the set, cut transfers, the server killed and started again in the middle.

    The samples are those of two workers that read from a folder: the weights are the same to the last bit.
    """
    sync.push(config, "small", "train")
    sync.push(config, "small", "val")
    reference = subprocess.run(
        [*denoise, "train", "--out", str(tmp_path / "near"), *STEPS], capture_output=True, text=True
    )
    assert reference.returncode == 0, reference.stderr
    near_state = next(project.glob("runs/ray/*/checkpoints/step-00000060/state.json"))
    samples = json.loads(near_state.read_text())["samples"]
    shutil.rmtree(project / "runs")

    folder = project / "data/shards/train/small"
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    biggest = max(path.stat().st_size for path in folder.glob("*.tar"))
    limit = max(size * 0.6, biggest * 1.2) / 1e9
    assert limit * 1e9 < size
    moved = project / "moved"
    (project / "data/shards").rename(moved)  # nothing is left here
    network = Network(s3.port, cut_share=0.5)
    network.up()
    environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{network.port}"}
    environment.pop("RAY_ADDRESS", None)
    given = [*STEPS, "data.url=s3://bucket/sets", f"data.disk_gb={limit}", "data.cache_mb=0"]
    training = subprocess.Popen(
        [*denoise, "train", "--json", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 300
    while not list(project.glob("runs/ray/*/checkpoints/step-*/manifest.json")) and training.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert training.poll() is None, "it should be in the middle"
    network.down()
    s3.kill()
    time.sleep(3)
    s3.start()
    s3.fill(moved, "bucket", "sets")
    network.up()
    out, err = training.communicate(timeout=400)
    network.down()
    assert training.returncode == 0, err
    assert network.cuts > 0
    model = Path(json.loads(out)["model"])
    near, far = (load_file(folder / "net.safetensors") for folder in (tmp_path / "near", model))
    far_state = next(project.glob("runs/ray/*/checkpoints/step-00000060/state.json"))
    assert json.loads(far_state.read_text())["samples"] == samples
    assert all(torch.equal(near[name], far[name]) for name in near)
