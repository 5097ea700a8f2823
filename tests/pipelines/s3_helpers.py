"""A real server of the S3 protocol, and a network that can be cut."""

import functools
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from pipelines.storage import base as storage
from tests.pipelines.mlflow_helpers import free_port

START_SECONDS = 60


class S3Server:
    """moto's server in a process of its own; what it holds is lost when it is killed, so it is filled again."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        script = Path(sys.executable).with_name("moto_server")
        if not script.exists():
            pytest.skip("needs moto's server: pip install 'noise2x[dev]'")
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([script, "-H", self.host, "-p", str(self.port)], stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            time.sleep(0.1)
        raise TimeoutError("moto's server does not answer")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @functools.cache  # noqa: B019
    def client(self):
        import boto3

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def clear(self) -> None:
        """Forget all that the server holds, and start it where it was killed."""
        if self.process is None:
            self.start()
        requests.post(f"{self.address}/moto-api/reset", timeout=60).raise_for_status()

    def fill(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put the files of a folder into a bucket, made where there is none."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


class Network:
    """A way to a port that passes bytes on, cuts connections at random, and can be closed altogether."""

    def __init__(self, target: int, cut_share: float = 0.0, seed: int = 0) -> None:
        self.target, self.cut_share, self.rng = target, cut_share, random.Random(seed)
        self.listener: socket.socket | None = None
        self.port = free_port()
        self.cuts = 0
        self.open: set[socket.socket] = set()

    def up(self) -> None:
        """Let connections in."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and break those that are open."""
        if self.listener is not None:
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for end in list(self.open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                here.close()
                continue
            self.open |= {here, there}
            limit = self.rng.randrange(1, 200_000) if self.rng.random() < self.cut_share else None
            threading.Thread(target=self._pass, args=(here, there, None), daemon=True).start()
            threading.Thread(target=self._pass, args=(there, here, limit), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if limit is not None and passed + len(data) > limit:
                    sink.sendall(data[: limit - passed])
                    self.cuts += 1
                    break
                sink.sendall(data)
                passed += len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self.open.discard(end)


def s3_variables(address: str) -> dict[str, str]:
    """Return what lets boto3 find the server as users of S3-compatible ones do: by the environment."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": address, **keys}


@contextmanager
def s3_environment(monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[None]:
    """Put them into this process's environment."""
    with monkeypatch.context() as patch:
        for key, value in s3_variables(f"http://127.0.0.1:{port}").items():
            patch.setenv(key, value)
        yield


def up_when_missed(network: Network, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let connections in after the first message about a failed attempt, and return the list of messages."""
    messages: list[str] = []

    def say(message: str) -> None:
        messages.append(message)
        if network.listener is None:
            network.up()

    monkeypatch.setattr(storage, "say", say)
    return messages
