"""Against a real server of the S3 protocol."""

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
from denoise.training.fault_injection import FaultInjector
from pipelines.storage import base as storage
from pipelines.storage.checkpoints import S3Store, open_store
from pipelines.storage.s3 import S3Remote
from tests.pipelines.s3_helpers import Network, s3_environment, up_when_missed

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


@pytest.fixture
def server(s3, monkeypatch):
    """The server, its bucket empty, where boto3 looks for it."""
    with s3_environment(monkeypatch, s3.port):
        yield s3


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


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True))


def keys(server, prefix=f"{THERE}/"):
    answer = server.client().list_objects_v2(Bucket="bucket", Prefix=prefix)
    return sorted(entry["Key"].removeprefix(prefix) for entry in answer.get("Contents", ()))


def read(server, path):
    return server.client().get_object(Bucket="bucket", Key=f"{THERE}/{path}")["Body"].read()


def write(server, path, data):
    server.client().put_object(Bucket="bucket", Key=f"{THERE}/{path}", Body=data)


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


def test_a_checkpoint_replaces_an_older_one_of_its_name(server):
    store = open_store(RUNS, "a")
    store.put(checkpoint_name(3), lambda work: (work / "raw.safetensors").write_bytes(b"old"))
    assert store.names() == []
    save(CheckpointManager(store), 3)
    assert keys(server) == [f"{checkpoint_name(3)}/{file}" for file in FILES]
    assert newest(CheckpointManager(store))[0] == 3


@pytest.mark.parametrize("harm", [*(f"flip {file}" for file in FILES), *(f"lose {file}" for file in FILES[1:]), "cut"])
def test_a_damaged_checkpoint_is_reported_once_and_the_older_one_used(server, harm):
    messages = []
    checkpoints = CheckpointManager(open_store(RUNS, "a"), on_message=messages.append)
    for step in (1, 2):
        save(checkpoints, step, history(20.0))
    kind, _, file = harm.partition(" ")
    path = f"{checkpoint_name(2)}/{file or MANIFEST}"
    if kind == "flip":
        data = bytearray(read(server, path))
        data[len(data) // 2] ^= 1
        write(server, path, bytes(data))
    elif kind == "lose":
        server.client().delete_object(Bucket="bucket", Key=f"{THERE}/{path}")
    else:
        write(server, path, read(server, path)[:-20])
    step, training = newest(checkpoints)
    assert step == 1
    assert same(training, trained(1))
    assert len(messages) == 1
    assert messages[0].startswith(f"warning: checkpoint {checkpoint_name(2)} is damaged (")
    assert messages[0].endswith(f"; resuming from {checkpoint_name(1)}")


def test_a_checkpoint_deleted_while_it_is_read_is_damaged(server):
    """Every file but the manifest is deleted after the names were listed, and then the manifest as well."""
    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1, history(20.0))
    for file in reversed(FILES):
        server.client().delete_object(Bucket="bucket", Key=f"{THERE}/{checkpoint_name(1)}/{file}")
        with store.open(checkpoint_name(1)) as folder:
            assert damage(folder).endswith("is missing" if file != MANIFEST else "is missing or unreadable")
            assert not (folder / file).exists()


def test_a_file_deleted_between_list_and_download_is_absent(server):
    class Late(S3Remote):
        """A remote whose file is deleted just before it is requested."""

        def receive(self, path, file, start):
            if path.endswith("net.safetensors"):
                self.delete([path])
            super().receive(path, file, start)

    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1)
    bucket = store.remote
    with S3Store(Late(bucket.address, bucket.bucket, bucket.prefix)).open(checkpoint_name(1)) as folder:
        assert damage(folder) == "net.safetensors is missing"


@pytest.mark.slow
def test_an_upload_killed_between_any_two_files_is_never_listed(server, tmp_path):
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
    messages, store = [], open_store(RUNS, run)
    names = [checkpoint_name(step) for step in ((1, 2) if whole else (1,))]
    assert store.names() == names, run
    checkpoints = CheckpointManager(store, on_message=messages.append)
    with checkpoints.newest() as folder:
        assert not damage(folder)
    assert messages == [f"resuming from {names[-1]}"]
    assert keys(server, f"deep/runs/{run}/checkpoints/") == [f"{name}/{file}" for name in names for file in FILES]
    store.put(checkpoint_name(2), snapshot(trained(2), RunProgress(2), CARD).write)
    with store.open(checkpoint_name(2)) as folder:
        assert not damage(folder)
        assert load_checkpoint(folder, trained(0)).step == 2


def test_foreign_objects_stay(server):
    foreign = ["notes.txt", "other/file", ""]
    for path in foreign:
        write(server, path, b"foreign")
    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1)
    write(server, f"{checkpoint_name(1)}/", b"")  # what consoles make of a folder
    write(server, f"{checkpoint_name(2)}/net.safetensors", b"half")
    assert newest(CheckpointManager(store))[0] == 1
    assert set(keys(server)) == {*foreign, *(f"{checkpoint_name(1)}/{file}" for file in ("", *FILES))}


def test_an_unreachable_server_is_tried_again(server, monkeypatch):
    network = Network(server.port)
    network.up()
    messages = up_when_missed(network, monkeypatch)

    class Cut(FaultInjector):
        def wrap_writer(self, step, write):
            def away(work):
                write(work)
                network.down()

            return away

    with s3_environment(monkeypatch, network.port):
        save(CheckpointManager(open_store(RUNS, "a"), faults=Cut()), 1)
        assert newest(CheckpointManager(open_store(RUNS, "a")))[0] == 1
    network.down()
    assert messages[0].startswith(f"{RUNS}/a/checkpoints/{checkpoint_name(1)}/")


def test_transfers_cut_at_random_arrive(server, monkeypatch):
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


def test_a_full_disk_is_a_user_error_and_the_older_checkpoint_stays(server):
    store = open_store(RUNS, "a")
    save(CheckpointManager(store), 1)

    with pytest.raises(UserError, match="the disk is full"):
        store.put(checkpoint_name(1), lambda work: Path("/dev/full").write_bytes(b"more"))
    assert newest(CheckpointManager(store))[0] == 1


@pytest.mark.parametrize("address", ["s3://nowhere/runs", "s3://no_[bucket]/runs"])
def test_a_wrong_bucket_is_a_user_error(server, address):
    checkpoints = CheckpointManager(open_store(address, "a"))
    for attempt in (lambda: newest(checkpoints), lambda: save(checkpoints, 1)):
        with pytest.raises(UserError, match=r"^s3://no.*; check ray\.storage.*\.$") as error:
            attempt()
        assert "data.url" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://", "ray.storage=s3:// names no bucket; write s3://BUCKET/PREFIX."),
        ("s3:/bucket/runs", "ray.storage=s3:/bucket/runs names no bucket; write s3://BUCKET/PREFIX."),
        ("gs://b/r", "ray.storage=gs://b/r is not understood; write s3://BUCKET/PREFIX or a folder."),
        ("http://h/r", "ray.storage=http://h/r is not understood; write s3://BUCKET/PREFIX or a folder."),
    ],
)
def test_a_malformed_address_is_a_user_error(address, expected):
    with pytest.raises(UserError) as error:
        open_store(address, "a")
    assert str(error.value) == expected


def test_a_folder_as_storage_gives_a_folder_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("runs/ray", str(tmp_path / "runs" / "ray")):
        store = open_store(given, "a")
        assert isinstance(store, FolderStore)
        assert store.folder == tmp_path / "runs" / "ray" / "a" / "checkpoints"
    save(CheckpointManager(store), 1)
    assert newest(CheckpointManager(open_store("runs/ray", "a")))[0] == 1
