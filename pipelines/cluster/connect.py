"""Connecting to Ray: the cluster that is asked for, or one on this machine."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from denoise.config import Config
from denoise.errors import UserError
from pipelines.cluster.auth import SHOW_IT, refuse_open, wants_a_token

# Ray Train's controller looks for reports this often; at its default of 2 s it would hold up short runs.
POLL_SECONDS = "0.5"


def ray_address(config: Config) -> str | None:
    """Return the address of the cluster that is asked for, None where it is to be one on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def ray_cluster(config: Config, state_api: bool = False, guarded: bool = True) -> Iterator[str]:
    """Connect to ``ray.address``, else to RAY_ADDRESS, else start Ray on this machine and stop it afterwards.

    Args:
        config: which cluster.
        state_api: whether a cluster on this machine should answer questions about its actors, which takes its
            dashboard: Ray asks them when it frees what a trial that was stopped had.
        guarded: whether to refuse a cluster that others can reach and that asks for no token.

    Yields:
        The address of Ray's dashboard, HOST:PORT, empty where there is none.

    Raises:
        UserError: the cluster cannot be reached, or is open to strangers.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    import ray

    address = ray_address(config)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if ray.is_initialized():  # somebody else's connection: theirs to close
        yield ""
        return
    with redirect_stdout(sys.stderr):  # Ray prints what happens to its workers; standard output is for answers
        connected = _join(address, quiet) if address else _start(config, state_api, quiet)
        try:
            if guarded and address not in (None, "local"):
                refuse_open(ray.get_runtime_context().gcs_address)
            yield connected.dashboard_url or ""
        finally:
            ray.shutdown()


def _start(config: Config, state_api: bool, options: Mapping[str, Any]) -> Any:
    """Start a cluster on this machine, for one run."""
    import ray

    wanted = config.ray.workers * config.ray.cpus_per_worker
    cpus = max(os.cpu_count() or 1, int(-(-wanted // 1)))
    # Nobody preempts it, and nobody has the time to open its dashboard.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A Ray worker trains in a thread; in an arena of its own denoise.training.malloc would not help it.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # Ray lets its workers yield to its own processes, which wait for them: torchrun's are not held back either.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A trial is half a dozen processes, most of which only wait: Ray warns where there are many more than processors.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * cpus))
    return ray.init(address="local", num_cpus=cpus, include_dashboard=state_api, **options)


def _join(address: str, options: Mapping[str, Any]) -> Any:
    """Connect to a cluster that runs."""
    import ray
    from ray.exceptions import AuthenticationError

    try:
        return ray.init(address=address, **options)
    except AuthenticationError as error:
        reason = str(error).partition(". ")[0]
        raise UserError(f"the Ray cluster at {address} cannot be joined ({reason}); {SHOW_IT}.") from None
    except (ConnectionError, RuntimeError) as error:
        if wants_a_token(address):
            raise UserError(
                f"the Ray cluster at {address} asks for a token, and this process shows none or another; {SHOW_IT}."
            ) from None
        reason = str(error).splitlines()[0]
        raise UserError(f"the Ray cluster at {address} cannot be reached ({reason}); check ray.address.") from None


def this_node() -> Any:
    """Return the strategy that keeps an actor on this process's machine, where no worker's death takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def use_gpu(config: Config) -> bool:
    """Say whether workers get a GPU: as asked, or where the connected cluster has one for each of them."""
    import ray

    if config.ray.gpu == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= config.ray.workers * config.ray.gpus_per_worker)
    return config.ray.gpu == "yes"


def worker_needs(config: Config, gpu: bool) -> dict[str, float]:
    """Return the resources of one worker, as Ray names them."""
    return {"CPU": config.ray.cpus_per_worker, **({"GPU": config.ray.gpus_per_worker} if gpu else {})}


def room(config: Config, gpu: bool) -> int:
    """Return how many workers the connected cluster could run, were nothing else running on it."""
    import ray

    needs = worker_needs(config, gpu)
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(kind, 0) // need) for kind, need in needs.items()) for has in alive)
