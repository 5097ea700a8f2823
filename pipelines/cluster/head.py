"""A Ray head on this machine that several commands share: the stages of ``denoise demo``."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from denoise.config import Config
from pipelines.cluster.auth import create_token
from pipelines.cluster.connect import configure_local_ray, ray_address
from pipelines.tracking.server import free_port

STOP_SECONDS = 30.0  # that Ray gets to end its processes
# Ends Ray when its standard input ends: also where the process that holds the other end was killed.
KEEPER = """
import subprocess, sys, tempfile
with tempfile.TemporaryDirectory(prefix="denoise-ray-", ignore_cleanup_errors=True) as folder:
    head = subprocess.Popen([*sys.argv[1:], f"--temp-dir={folder}"], stdin=subprocess.DEVNULL)
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
    cpus, address = configure_local_ray(config), f"127.0.0.1:{free_port()}"
    environment = {
        "RAY_AUTH_MODE": "token",  # the head requires one by default, but who joins has to say so
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing runs any more that would have to move to another host
        **os.environ,
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, *start, f"--port={address.rpartition(':')[2]}", f"--num-cpus={cpus}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the commands, which need Ray until they have saved a checkpoint
    )
    try:
        yield {**environment, "RAY_ADDRESS": address}
    finally:
        with suppress(subprocess.TimeoutExpired):  # it goes on ending Ray by itself
            keeper.communicate(timeout=STOP_SECONDS)
