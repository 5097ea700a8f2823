"""What is wrong with a cluster, said before a run finds out: every host is asked, the driver compares."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from typing import Any

from denoise.config import Config
from denoise.errors import UserError
from pipelines.cluster import auth
from pipelines.cluster.connect import ray_address, ray_cluster, room, use_gpu
from pipelines.datasets.layout import data_place
from pipelines.doctor.findings import (
    Finding,
    by_host,
    compare_clocks,
    compare_gpus,
    compare_versions,
    judge_room,
    wrong,
)
from pipelines.doctor.probe import Probe, clear, leave, versions
from pipelines.storage.checkpoints import absolute
from pipelines.tracking import client as tracking
from pipelines.tuning.optuna_objects import is_made, open_storage

SECONDS = 60.0  # that the hosts have to start a process, and then to answer
CLOCK_TRIES = 5  # the quickest answer says most about a clock


def check_cluster(config: Config) -> list[Finding]:
    """Look at the cluster that is asked for, and at every host of it.

    Raises:
        UserError: none is asked for, or it cannot be reached.
    """
    if ray_address(config) is None:
        raise UserError(
            "there is no cluster to check, as ray.address is not set; name one with ray.address=HOST:PORT or "
            "RAY_ADDRESS, or ray.address=auto on a host of it."
        )
    with ray_cluster(config, guarded=False):
        import ray

        findings = [check_token(ray.get_runtime_context().gcs_address)]
        nodes = _named([node for node in ray.nodes() if node["Alive"]])
        probes, silent = _start(nodes)
        findings += silent
        if probes:
            findings += _look(config, nodes, probes)
        return [*findings, _study(config.tune.storage), _room(config)]


def check_token(address: str) -> Finding:
    """Say who is let in at the control service of a cluster, HOST:PORT."""
    try:
        if not auth.accepts_unauthenticated(address):
            return Finding("token", "ok", f"{address} answers nobody without the token")
        auth.refuse_open(address)
    except UserError as error:
        return Finding("token", "problem", str(error).rstrip("."))
    return Finding("token", "ok", f"{address} asks for no token, and is reached from this machine alone")


def _named(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return hosts by address; where several share one, also by the first letters of Ray's name for them."""
    nodes = sorted(nodes, key=lambda node: node["NodeManagerAddress"])
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return {
        address if addresses.count(address) == 1 else f"{address}/{node['NodeID'][:6]}": node
        for address, node in zip(addresses, nodes, strict=True)
    }


def _start(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[Finding]]:
    """Start a process on every host; return those that answer, and what was found about all of them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(num_cpus=0, max_concurrency=8)(Probe)  # one question that hangs must not hold up the others
    probes = {
        host: actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for host, node in nodes.items()
    }
    bad = wrong(_answers({host: probe.now.remote() for host, probe in probes.items()}))
    fine = f"{len(nodes)} run what they are sent: {', '.join(nodes)}"
    findings = by_host(
        "hosts", fine, bad, "it needs this package and this token as they are here; Ray's log there says more"
    )
    return {host: probe for host, probe in probes.items() if host not in bad}, findings


def _look(config: Config, nodes: Mapping[str, Any], probes: Mapping[str, Any]) -> list[Finding]:
    """Ask the hosts that answer."""
    clocks = {host: _clock(probe) for host, probe in probes.items()}
    storage, mark = absolute(config.ray.storage), f"driver-{secrets.token_hex(4)}"
    place, paths = _indices(config)
    uri = tracking.resolve_uri(config.tracking.uri, Path.cwd())
    here = leave(storage, mark)
    left = mark if here is None else None
    questions: dict[str, Callable[[Any], Any]] = {
        "versions": lambda probe: probe.versions.remote(),
        "gpus": lambda probe: probe.gpus.remote(),
        "storage": lambda probe: probe.storage.remote(storage, left),
        "data": lambda probe: probe.data.remote(place, paths),
        "mlflow": lambda probe: probe.mlflow.remote(uri),
    }
    if tracking.database(uri) is not None:
        del questions["mlflow"]  # a file of this machine
    try:
        asked = {check: {host: ask(probe) for host, probe in probes.items()} for check, ask in questions.items()}
        answers = {check: _answers(futures) for check, futures in asked.items()}
    finally:
        clear(storage, mark)
    offered = {host: int(nodes[host]["Resources"].get("GPU", 0)) for host in probes}
    fetch = "" if config.data.url else "set data.url to a place that all hosts reach, or bring the shards to each"
    return [
        *compare_versions(answers["versions"], versions()),
        *compare_clocks(clocks),
        *compare_gpus(answers["gpus"], offered),
        *by_host("storage", f"{storage} is written, read and deleted from by all", wrong(answers["storage"], here)),
        *by_host("data", f"all read {', '.join(config.data.train)} at {place}", wrong(answers["data"]), fetch),
        *_mlflow(uri, answers.get("mlflow"), len(probes)),
    ]


def _answers(futures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each host answers, a sentence where it does not."""
    import ray

    ready, _ = ray.wait(list(futures.values()), num_returns=len(futures), timeout=SECONDS)
    found: dict[str, Any] = {}
    for host, future in futures.items():
        if future not in ready:
            found[host] = f"no answer within {SECONDS:.0f} s"
            continue
        try:
            found[host] = ray.get(future)
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found[host] = lines[-1].rstrip(".")
    return found


def _clock(probe: Any) -> tuple[float, float] | str:
    """Return how far a host's clock is ahead of this one's, and how uncertain that is, in seconds."""
    tries = []
    for _ in range(CLOCK_TRIES):
        before = time()
        there = _answers({"": probe.now.remote()})[""]
        after = time()
        if isinstance(there, str):
            return there
        tries.append((there - (before + after) / 2, (after - before) / 2))
    return min(tries, key=lambda one: one[1])


def _indices(config: Config) -> tuple[str, list[str]]:
    """Return where the training sets are read from, and the paths of their indices there."""
    from denoise.data.shards import INDEX

    root = Path() if config.data.url is not None else Path("shards")
    return data_place(config), [str(root / "train" / name / INDEX) for name in config.data.train]


def _mlflow(uri: str, answers: Mapping[str, object] | None, hosts: int) -> list[Finding]:
    where = tracking.without_password(uri)
    if answers is not None:
        return by_host("mlflow", f"{where} answers all", wrong(answers))
    if hosts == 1:
        return [Finding("mlflow", "ok", f"{where} is a file of this machine")]
    says = (
        f"{where} is a file, which other hosts do not see: a run that moves there is recorded afterwards, from "
        "ray.storage; set tracking.uri to a server"
    )
    return [Finding("mlflow", "warning", says)]


def _study(address: str) -> Finding:
    """Look at tune.storage, which only the driver opens."""
    where = tracking.without_password(address)
    if not is_made(address):
        return Finding("sweeps", "ok", f"{where} is not there yet; the first sweep makes it")
    try:
        open_storage(address)
    except UserError as error:
        return Finding("sweeps", "problem", str(error).rstrip("."))
    return Finding("sweeps", "ok", f"{where} can be opened")


def _room(config: Config) -> Finding:
    return judge_room(room(config, use_gpu(config)), config.ray.workers, config.ray.min_workers)
