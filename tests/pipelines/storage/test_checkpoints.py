"""Against a real server of the S3 protocol."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from denoise.config import Config, to_dict
from denoise.denoiser import make_card
from denoise.errors import UserError
from denoise.methods import with_net
from denoise.training.checkpoint import (
    MANIFEST,
    RunProgress,
    TrainState,
    checkpoint_name,
    damage,
    load_checkpoint,
    snapshot,
)
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
from pipelines.storage import base as storage
from pipelines.storage.checkpoints import S3Store, open_store
from tests.pipelines.s3_helpers import Network, S3Server, s3_environment, up_when_missed

CARD = make_card(to_dict(with_net(Config())), channels=3)
FILES = ["manifest.json", "metrics.jsonl", "model.json", "net.safetensors", "optimizer.safetensors", "state.json"]
RUNS = "s3://bucket/deep/runs"
THERE = "deep/runs/a/checkpoints"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary folders go: nothing is left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.glob("denoise-*"))  # torch has a cache there


@pytest.fixture(scope="module")
def running():
    server = S3Server()
    server.start()
    client(server).create_bucket(Bucket="bucket")
    yield server
    server.kill()


@pytest.fixture
def server(running, monkeypatch):
    """The server, its bucket empty."""
    for key in keys(running, ""):
        client(running).delete_object(Bucket="bucket", Key=key)
    with s3_environment(monkeypatch, running.port):
        yield running


@functools.cache
def client(server):
    return server.client()


def trained(steps):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        net(torch.rand(1, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return TrainState(net, optimizer)


def history(*scores):
    return [{"step": step, "val_psnr": score} for step, score in enumerate(scores, start=1)]


def save(checkpoints, step, rows=()):
    checkpoints.save(snapshot(trained(step), RunProgress(step, history=rows), CARD), step, rows)
    checkpoints.wait()


def newest(checkpoints):
    """Return the step and the net of the newest sound checkpoint."""
    training = trained(0)
    with checkpoints.newest() as folder:
        return (load_checkpoint(folder, training).step, training) if folder else (None, None)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True))


def keys(server, prefix=f"{THERE}/"):
    answer = client(server).list_objects_v2(Bucket="bucket", Prefix=prefix)
    return sorted(entry["Key"].removeprefix(prefix) for entry in answer.get("Contents", ()))


def read(server, path):
    return client(server).get_object(Bucket="bucket", Key=f"{THERE}/{path}")["Body"].read()


def write(server, path, data):
    client(server).put_object(Bucket="bucket", Key=f"{THERE}/{path}", Body=data)


def test_everything_comes_back_exactly(server):
    rows = history(20.0, 21.5)
    checkpoints = CheckpointManager(open_store(RUNS, "a"))
    assert newest(checkpoints) == (None, None)
    save(checkpoints, 2, rows)
    assert keys(server) == [f"{checkpoint_name(2)}/{file}" for file in FILES]

    training, before = trained(0), trained(2)
    with CheckpointManager(open_store(f"{RUNS}/", "a")).newest() as folder:
        assert load_checkpoint(folder, training) == RunProgress(2, history=rows)
    assert not folder.exists()
    assert same(training, before)
    states = [each.optimizer.state_dict()["state"] for each in (before, training)]
    assert states[0].keys() == states[1].keys()
    for index, entries in states[0].items():
        assert entries.keys() == states[1][index].keys()
        assert all(torch.equal(value, states[1][index][name]) for name, value in entries.items())


def test_a_run_does_not_see_another_one(server):
    for run, step in (("a", 1), ("ab", 2)):
        save(CheckpointManager(open_store(RUNS, run)), step)
    names = [open_store(RUNS, run).names() for run in ("a", "ab", "b")]
    assert names == [[checkpoint_name(1)], [checkpoint_name(2)], []]
    open_store(RUNS, "a").delete(checkpoint_name(1))
    assert not keys(server)
    assert newest(CheckpointManager(open_store(RUNS, "ab")))[0] == 2


def test_the_newest_and_the_best_are_kept(server):
    checkpoints = CheckpointManager(open_store(RUNS, "a"), keep=2)
    scores = [20.0, 23.0, 21.0, 22.0, 22.5]
    for step in range(1, 6):
        save(checkpoints, step, history(*scores[:step]))
    assert open_store(RUNS, "a").names() == [checkpoint_name(step) for step in (2, 4, 5)]
    assert len(keys(server)) == 3 * len(FILES)


def test_a_checkpoint_takes_the_place_of_an_older_one_of_its_name(server):
    store = open_store(RUNS, "a")
    store.put(checkpoint_name(3), lambda work: (work / "raw.safetensors").write_bytes(b"old"))
    assert store.names() == []
    save(CheckpointManager(store), 3)
    assert keys(server) == [f"{checkpoint_name(3)}/{file}" for file in FILES]
    assert newest(CheckpointManager(store))[0] == 3


@pytest.mark.parametrize("harm", [*(f"flip {file}" for file in FILES), *(f"lose {file}" for file in FILES[1:]), "cut"])
def test_a_damaged_one_is_told_once_and_the_older_one_taken(server, harm):
    told = []
    checkpoints = CheckpointManager(open_store(RUNS, "a"), tell=told.append)
    for step in (1, 2):
        save(checkpoints, step, history(20.0))
    kind, _, file = harm.partition(" ")
    path = f"{checkpoint_name(2)}/{file or MANIFEST}"
    if kind == "flip":
        data = bytearray(read(server, path))
        data[len(data) // 2] ^= 1
        write(server, path, bytes(data))
    elif kind == "lose":
        client(server).delete_object(Bucket="bucket", Key=f"{THERE}/{path}")
    else:
        write(server, path, read(server, path)[:-20])
    step, training = newest(checkpoints)
    assert step == 1
    assert same(training, trained(1))
    assert len(told) == 1
    assert told[0].startswith(f"warning: checkpoint {checkpoint_name(2)} is damaged (")
    assert told[0].endswith(f"; going on from {checkpoint_name(1)}")


def test_one_that_vanishes_while_it_is_read_is_damaged(server):
    """Every file but the manifest is deleted after the names were listed, and then the manifest as well."""
    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1, history(20.0))
    for file in reversed(FILES):
        client(server).delete_object(Bucket="bucket", Key=f"{THERE}/{checkpoint_name(1)}/{file}")
        with store.open(checkpoint_name(1)) as folder:
            assert damage(folder).endswith("is missing" if file != MANIFEST else "is missing or unreadable")
            assert not (folder / file).exists()


def test_a_file_that_vanishes_between_list_and_download_is_absent(server):
    class Late(storage.S3):
        """A place where a file goes just before it is asked for."""

        def receive(self, path, file, start):
            if path.endswith("net.safetensors"):
                self.delete([path])
            super().receive(path, file, start)

    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1)
    place = store.place
    with S3Store(Late(place.address, place.bucket, place.prefix)).open(checkpoint_name(1)) as folder:
        assert damage(folder) == "net.safetensors is missing"


@pytest.mark.slow
def test_an_upload_killed_between_any_two_files_never_shows(server, tmp_path):
    folder = tmp_path / "sound"
    folder.mkdir()
    snapshot(trained(1), RunProgress(1), CARD).write(folder)
    script = Path(__file__).with_name("killed_upload.py")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # those who are killed leave their temporary folders
    command = [sys.executable, script, RUNS, folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    killed, again = map(int, done.stdout.split())
    assert (killed, again) == (len(FILES), 2 * len(FILES))  # changes that a whole upload makes
    for kind, last in (("killed", killed), ("again", again)):
        for left in range(last + 1):
            check_after_kill(server, f"{kind}-{left}", whole=left == last or (kind, left) == ("again", 0))


def check_after_kill(server, run, whole):
    told, store = [], open_store(RUNS, run)
    names = [checkpoint_name(step) for step in ((1, 2) if whole else (1,))]
    assert store.names() == names, run
    checkpoints = CheckpointManager(store, tell=told.append)
    with checkpoints.newest() as folder:
        assert not damage(folder)
    assert told == [f"going on from {names[-1]}"]
    assert keys(server, f"deep/runs/{run}/checkpoints/") == [f"{name}/{file}" for name in names for file in FILES]
    store.put(checkpoint_name(2), snapshot(trained(2), RunProgress(2), CARD).write)
    with store.open(checkpoint_name(2)) as folder:
        assert not damage(folder)
        assert load_checkpoint(folder, trained(0)).step == 2


def test_what_is_not_ours_stays(server):
    foreign = ["notes.txt", "other/file", ""]
    for path in foreign:
        write(server, path, b"foreign")
    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1)
    write(server, f"{checkpoint_name(1)}/", b"")  # what consoles make of a folder
    write(server, f"{checkpoint_name(2)}/net.safetensors", b"half")
    assert newest(CheckpointManager(store))[0] == 1
    assert set(keys(server)) == {*foreign, *(f"{checkpoint_name(1)}/{file}" for file in ("", *FILES))}


def test_a_server_that_is_away_for_a_while_is_waited_for(server, monkeypatch):
    network = Network(server.port)
    network.up()
    said = up_when_missed(network, monkeypatch)

    def cut(step, write):
        def away(work):
            write(work)
            network.down()

        return away

    with s3_environment(monkeypatch, network.port):
        save(CheckpointManager(open_store(RUNS, "a"), tamper=cut), 1)
        assert newest(CheckpointManager(open_store(RUNS, "a")))[0] == 1
    network.down()
    assert said[0].startswith(f"{RUNS}/a/checkpoints/{checkpoint_name(1)}/")


def test_transfers_that_are_cut_at_random_arrive(server, monkeypatch):
    network = Network(server.port, cut_share=0.6, seed=3)
    network.up()
    torch.manual_seed(0)
    net = nn.Linear(300, 300)  # 360 kB
    with s3_environment(monkeypatch, network.port):
        store = open_store(RUNS, "a")
        for step in range(1, 4):
            training = TrainState(net, torch.optim.SGD(net.parameters()))
            store.put(checkpoint_name(step), snapshot(training, RunProgress(step), CARD).write)
            with store.open(checkpoint_name(step)) as folder:
                assert not damage(folder)
    network.down()
    assert network.cuts


def test_a_full_disk_is_told_and_what_is_there_stays(server):
    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1)

    with pytest.raises(UserError, match="the disk is full"):
        store.put(checkpoint_name(1), lambda work: Path("/dev/full").write_bytes(b"more"))
    assert newest(CheckpointManager(store))[0] == 1


@pytest.mark.parametrize("address", ["s3://nowhere/runs", "s3://no_[bucket]/runs"])
def test_a_wrong_bucket_is_told(server, address):
    checkpoints = CheckpointManager(open_store(address, "a"))
    for attempt in (lambda: newest(checkpoints), lambda: save(checkpoints, 1)):
        with pytest.raises(UserError, match=r"^s3://no.*; check ray\.storage.*\.$") as told:
            attempt()
        assert "data.url" not in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://", "ray.storage=s3:// names no bucket; write s3://BUCKET/PREFIX."),
        ("s3:/bucket/runs", "ray.storage=s3:/bucket/runs names no bucket; write s3://BUCKET/PREFIX."),
        ("gs://b/r", "ray.storage=gs://b/r is not understood; write s3://BUCKET/PREFIX or a folder."),
        ("http://h/r", "ray.storage=http://h/r is not understood; write s3://BUCKET/PREFIX or a folder."),
    ],
)
def test_an_address_that_is_none_is_told(address, expected):
    with pytest.raises(UserError) as told:
        open_store(address, "a")
    assert str(told.value) == expected


def test_a_folder_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("runs/ray", str(tmp_path / "runs" / "ray")):
        store = open_store(given, "a")
        assert isinstance(store, FolderStore)
        assert store.folder == tmp_path / "runs" / "ray" / "a" / "checkpoints"
    save(CheckpointManager(store), 1)
    assert newest(CheckpointManager(open_store("runs/ray", "a")))[0] == 1
