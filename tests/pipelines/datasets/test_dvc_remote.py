"""DVC's own remote on a server of the S3 protocol, set up as docs/data.md says."""

import shutil
import subprocess
import sys

from denoise.files import file_digest
from tests.pipelines.s3_helpers import s3_environment

DVC = [sys.executable, "-m", "dvc"]


def dvc(*arguments, check=True):
    done = subprocess.run([*DVC, *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def digests(folder):
    return {path.name: file_digest(path) for path in folder.iterdir()}


def test_shards_are_pushed_and_pulled_and_damage_is_detected(s3, small_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_shards, tmp_path / "shards")
    before = digests(tmp_path / "shards")
    with s3_environment(monkeypatch, s3.port):
        dvc("init", "--no-scm", "-q")
        dvc("remote", "add", "-d", "store", "s3://bucket/dvc")
        dvc("remote", "modify", "store", "verify", "true")
        dvc("remote", "modify", "store", "endpointurl", s3.address)
        dvc("add", "-q", "shards")
        dvc("push")
        forget(tmp_path)
        dvc("pull")
        assert digests(tmp_path / "shards") == before

        client = s3.client()
        keys = [item["Key"] for item in client.list_objects_v2(Bucket="bucket", Prefix="dvc")["Contents"]]
        key = max(keys, key=lambda key: client.head_object(Bucket="bucket", Key=key)["ContentLength"])
        data = client.get_object(Bucket="bucket", Key=key)["Body"].read()
        client.put_object(Bucket="bucket", Key=key, Body=data[:700] + bytes([data[700] ^ 1]) + data[701:])
        forget(tmp_path)
        assert dvc("pull", check=False).returncode != 0
        assert not (tmp_path / "shards").exists() or digests(tmp_path / "shards").items() <= before.items()


def forget(folder):
    shutil.rmtree(folder / "shards")
    shutil.rmtree(folder / ".dvc" / "cache")
