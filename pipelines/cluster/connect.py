"""Connect to Ray: to the cluster that is configured, or to one that is started on this machine."""

import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from denoise.config import Config
from denoise.errors import UserError
from denoise.redaction import without_passwords
from pipelines.cluster.auth import AUTH_HINT, create_token, protect_token, refuse_open, requires_token

LISTENING_SECONDS = 10.0  # that the head of a cluster may take until it listens
STARTING_SECONDS = 60.0  # the same on this machine, where it may just have been started (head.py)


def ray_address(config: Config) -> str | None:
    """Return the address of the configured cluster, None if one is to be started on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def ray_cluster(config: Config, state_api: bool = False, check_token: bool = True) -> Iterator[str]:
    """Connect to ``ray.address`` or RAY_ADDRESS; without either, start Ray on this machine and stop it afterwards.

    Args:
        config: names the cluster.
        state_api: whether a cluster on this machine gets a dashboard and with it Ray's state API, which Ray Tune
            needs to free the resources of a stopped trial.
        check_token: whether to refuse a cluster that others can reach and that requires no token.

    Yields:
        The address of Ray's dashboard, HOST:PORT, empty if there is none.

    Raises:
        UserError: the cluster cannot be reached, or requires no token.
    """
    import ray

    address = ray_address(config)
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if ray.is_initialized():  # the caller's connection, which the caller closes
        yield ""
        return
    _show_no_password()
    (create_token if address in (None, "local") else protect_token)()
    with redirect_stdout(sys.stderr):  # Ray prints events of its workers; standard output is for results
        context = _join(address, options) if address else _start(config, state_api, options)
        try:
            if check_token and address not in (None, "local"):
                refuse_open(ray.get_runtime_context().gcs_address)
            yield context.dashboard_url or ""
        finally:
            ray.shutdown()


def _show_no_password() -> None:
    """Let Ray show this process to the users of the cluster as a command without passwords."""
    import ray._private.utils as internals  # there is no public way to say what it shows

    command = shlex.join(["denoise", *map(without_passwords, sys.argv[1:])])
    internals.get_entrypoint_name = lambda: command


def _start(config: Config, state_api: bool, options: Mapping[str, Any]) -> Any:
    """Start a cluster on this machine, for one command."""
    import ray

    cpus = configure_local_ray(config)
    return ray.init(address="local", num_cpus=cpus, include_dashboard=state_api, **options)


def configure_local_ray(config: Config) -> int:
    """Set Ray's variables for a cluster on this machine, and return the number of its processors."""
    workers = 1 if config.ray.workers == "auto" else config.ray.workers
    cpus = max(os.cpu_count() or 1, math.ceil(workers * config.ray.cpus_per_worker))
    # This machine is not preempted.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Nobody collects the metrics of a cluster that ends with the command; gathering them takes time from the workers.
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # A Ray worker trains in a thread; with more arenas, denoise.training.malloc would have no effect there.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # By default Ray lowers the priority of workers below its own processes, which only wait for them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A trial has about six processes, most of which only wait; by default Ray warns of more processes than CPUs.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * cpus))
    return cpus


def _join(address: str, options: Mapping[str, Any]) -> Any:
    """Connect to a running cluster."""
    import ray
    from ray.exceptions import AuthenticationError

    _wait_until_listening(address)
    try:
        return ray.init(address=address, **options)
    except AuthenticationError as error:
        reason = str(error).partition(". ")[0]
        raise UserError(f"the Ray cluster at {address} cannot be joined ({reason}); {AUTH_HINT}.") from None
    except (ConnectionError, RuntimeError) as error:
        if requires_token(address):
            raise UserError(
                f"the Ray cluster at {address} requires a token, and this process has none or another; {AUTH_HINT}."
            ) from None
        reason = str(error).splitlines()[0]
        raise UserError(f"the Ray cluster at {address} cannot be reached ({reason}); check ray.address.") from None


def _wait_until_listening(address: str) -> None:
    """Wait for a cluster that is just being started; Ray itself would try for a quarter of an hour.

    Raises:
        UserError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:  # such as "auto", or the address of a Ray client
        return
    deadline = time.monotonic() + (STARTING_SECONDS if host in ("127.0.0.1", "localhost") else LISTENING_SECONDS)
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), LISTENING_SECONDS).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"the Ray cluster at {address} cannot be reached ({reason}); check ray.address."
                ) from None
            time.sleep(0.2)


def this_node() -> Any:
    """Return the scheduling strategy that keeps an actor on this machine, where it survives the loss of a worker."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
