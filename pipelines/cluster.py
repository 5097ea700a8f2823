"""Connecting to Ray: the cluster that is asked for, or one on this machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from denoise.config import Config
from denoise.errors import UserError

# Ray Train's controller looks for reports this often; at its default of 2 s it would hold up short runs.
POLL_SECONDS = "0.5"


def ray_address(config: Config) -> str | None:
    """Return the address of the cluster that is asked for, None where it is to be one on this machine."""
    return config.ray.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def ray_cluster(config: Config, state_api: bool = False) -> Iterator[str]:
    """Connect to ``ray.address``, else to RAY_ADDRESS, else start Ray on this machine and stop it afterwards.

    Args:
        config: which cluster.
        state_api: whether a cluster on this machine should answer questions about its actors, which takes its
            dashboard: Ray asks them when it frees what a trial that was stopped had.

    Yields:
        The address of Ray's dashboard, HOST:PORT, empty where there is none.

    Raises:
        UserError: the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    import ray

    address = ray_address(config)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if ray.is_initialized():  # somebody else's connection: theirs to close
        yield ""
        return
    if address:
        try:
            connected = ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the Ray cluster at {address} cannot be reached ({reason}); check ray.address.") from None
    else:
        wanted = config.ray.workers * config.ray.cpus_per_worker
        cpus = max(os.cpu_count() or 1, int(-(-wanted // 1)))
        # A cluster for one run: nobody preempts it, and nobody has the time to open its dashboard.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # A Ray worker trains in a thread; in an arena of its own denoise.allocator would not help it.
        os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        # Ray lets its workers yield to its own processes, which wait for them: torchrun's are not held back either.
        os.environ.setdefault("RAY_worker_niceness", "0")
        connected = ray.init(address="local", num_cpus=cpus, include_dashboard=state_api, **quiet)
    try:
        with redirect_stdout(sys.stderr):  # Ray prints what happens to its workers; standard output is for answers
            yield connected.dashboard_url or ""
    finally:
        ray.shutdown()


def this_node() -> Any:
    """Return the strategy that keeps an actor on this process's machine, where no worker's death takes it along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def worker_needs(config: Config, gpu: bool) -> dict[str, float]:
    """Return the resources of one worker, as Ray names them."""
    return {"CPU": config.ray.cpus_per_worker, **({"GPU": config.ray.gpus_per_worker} if gpu else {})}


def room(config: Config, gpu: bool) -> int:
    """Return how many workers the connected cluster could run, were nothing else running on it."""
    import ray

    needs = worker_needs(config, gpu)
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(kind, 0) // need) for kind, need in needs.items()) for has in alive)
