"""A Ray head on this machine that several commands share: the stages of ``denoise demo``."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from denoise.config import Config
from pipelines.cluster.auth import create_token
from pipelines.cluster.connect import configure_local_ray, ray_address

STOP_SECONDS = 30.0  # that Ray gets to end its processes
# Ends Ray when its standard input ends: also where the process that holds the other end was killed.
KEEPER = """
import subprocess, sys
head = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
head.terminate()
head.wait()
"""


@contextmanager
def shared_head(config: Config) -> Iterator[Mapping[str, str]]:
    """Yield the environment in which all commands use one Ray while the block runs: the configured one, or a new one.

    A new one gets ready while the block begins; who joins it waits for that (``ray_cluster``).
    """
    if ray_address(config):
        yield os.environ
        return
    create_token()
    cpus, address = configure_local_ray(config), f"127.0.0.1:{_free_port()}"
    environment = {
        "RAY_AUTH_MODE": "token",
        **os.environ,
    }  # the head requires a token by default, who joins has to say so
    with tempfile.TemporaryDirectory(prefix="denoise-ray-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"]
        command += [f"--port={address.rpartition(':')[2]}", f"--num-cpus={cpus}", "--include-dashboard=false"]
        keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the commands, which need Ray until they have saved a checkpoint
        )
        try:
            yield {**environment, "RAY_ADDRESS": address}
        finally:
            keeper.communicate(timeout=STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
