"""Check of a cluster before a run: actors check every host, the driver compares their answers."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from typing import Any

from denoise.config import Config
from denoise.errors import UserError
from denoise.redaction import without_passwords
from pipelines.cluster import auth
from pipelines.cluster.connect import ray_address, ray_cluster
from pipelines.cluster.workers import fit_to_cluster, worker_capacity
from pipelines.datasets.layout import data_place, set_path
from pipelines.doctor.findings import (
    Finding,
    by_host,
    check_capacity,
    compare_clocks,
    compare_gpus,
    compare_versions,
    errors_by_host,
)
from pipelines.doctor.probe import Probe, delete_marker, versions, write_marker
from pipelines.storage.checkpoints import absolute
from pipelines.tracking import client as tracking
from pipelines.tracking.database import sqlite_file
from pipelines.tuning.optuna_objects import open_storage, storage_exists

TIMEOUT_SECONDS = 60.0  # for the hosts to start an actor, and then again to answer
CLOCK_TRIES = 5  # of which the quickest is used


def check_cluster(config: Config) -> list[Finding]:
    """Check the configured cluster and every host of it, and return the findings in a fixed order.

    Raises:
        UserError: no cluster is configured, or it cannot be reached.
    """
    if ray_address(config) is None:
        raise UserError(
            "there is no cluster to check, as ray.address is not set; name one with ray.address=HOST:PORT or "
            "RAY_ADDRESS, or ray.address=auto on a host of it."
        )
    with ray_cluster(config, check_token=False):
        import ray

        findings = [check_token(ray.get_runtime_context().gcs_address)]
        nodes = _nodes_by_host([node for node in ray.nodes() if node["Alive"]])
        probes, host_findings = _start_probes(nodes)
        findings += host_findings
        if probes:
            findings += _check_hosts(config, nodes, probes)
        return [*findings, _check_sweeps(config.tune.storage), _check_capacity(config)]


def check_token(address: str) -> Finding:
    """Check that the cluster whose control service (GCS) is at HOST:PORT requires a token or is on loopback."""
    try:
        if not auth.accepts_unauthenticated(address):
            return Finding("token", "ok", f"{address} rejects calls without the token")
        auth.refuse_open(address)
    except UserError as error:
        return Finding("token", "problem", str(error).rstrip("."))
    return Finding("token", "ok", f"{address} requires no token, and can be reached from this machine only")


def _nodes_by_host(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return Ray's nodes by address; where several share one, the first letters of the node id are appended."""
    nodes = sorted(nodes, key=lambda node: node["NodeManagerAddress"])
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return {
        address if addresses.count(address) == 1 else f"{address}/{node['NodeID'][:6]}": node
        for address, node in zip(addresses, nodes, strict=True)
    }


def _start_probes(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[Finding]]:
    """Start an actor on every host; return those that answer, by host, and the findings about the others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(num_cpus=0, max_concurrency=8)(Probe)  # a check that hangs must not hold up the others
    probes = {
        host: actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for host, node in nodes.items()
    }
    errors = errors_by_host(_collect({host: probe.now.remote() for host, probe in probes.items()}))
    ok_message = f"{len(nodes)} answer: {', '.join(nodes)}"
    findings = by_host(
        "hosts", ok_message, errors, "it needs the same package and the same token as here; see Ray's log there"
    )
    return {host: probe for host, probe in probes.items() if host not in errors}, findings


def _check_hosts(config: Config, nodes: Mapping[str, Any], probes: Mapping[str, Any]) -> list[Finding]:
    """Run the checks on the hosts that answer."""
    clocks = {host: _clock_offset(probe) for host, probe in probes.items()}
    storage, marker = absolute(config.ray.storage), f"driver-{secrets.token_hex(4)}"
    place, paths = _index_paths(config)
    uri = tracking.resolve_uri(config.tracking.uri, Path.cwd())
    driver_error = write_marker(storage, marker)
    written_marker = marker if driver_error is None else None
    checks: dict[str, Callable[[Any], Any]] = {
        "versions": lambda probe: probe.versions.remote(),
        "gpus": lambda probe: probe.gpus.remote(),
        "storage": lambda probe: probe.storage.remote(storage, written_marker),
        "data": lambda probe: probe.data.remote(place, paths),
        "mlflow": lambda probe: probe.mlflow.remote(uri),
    }
    if sqlite_file(uri) is not None:
        del checks["mlflow"]  # a file of this machine
    try:
        futures = {check: {host: call(probe) for host, probe in probes.items()} for check, call in checks.items()}
        answers = {check: _collect(by_probe) for check, by_probe in futures.items()}
    finally:
        delete_marker(storage, marker)
    offered = {host: int(nodes[host]["Resources"].get("GPU", 0)) for host in probes}
    hint = "" if config.data.url else "set data.url to an address that all hosts reach, or copy the shards to each"
    return [
        *compare_versions(answers["versions"], versions()),
        *compare_clocks(clocks),
        *compare_gpus(answers["gpus"], offered),
        *by_host("storage", f"all write to and read {storage}", errors_by_host(answers["storage"], driver_error)),
        *by_host("data", f"all read {', '.join(config.data.train)} at {place}", errors_by_host(answers["data"]), hint),
        *_check_mlflow(uri, answers.get("mlflow"), len(probes)),
    ]


def _collect(futures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of each host, an error message where there is none."""
    import ray

    ready, _ = ray.wait(list(futures.values()), num_returns=len(futures), timeout=TIMEOUT_SECONDS)
    answers: dict[str, Any] = {}
    for host, future in futures.items():
        if future not in ready:
            answers[host] = f"no answer within {TIMEOUT_SECONDS:.0f} s"
            continue
        try:
            answers[host] = ray.get(future)
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            answers[host] = lines[-1].rstrip(".")
    return answers


def _clock_offset(probe: Any) -> tuple[float, float] | str:
    """Return (offset of the host's clock from this machine's, uncertainty), in seconds, or an error message."""
    tries = []
    for _ in range(CLOCK_TRIES):
        before = time()
        answer = _collect({"": probe.now.remote()})[""]
        after = time()
        if isinstance(answer, str):
            return answer
        tries.append((answer - (before + after) / 2, (after - before) / 2))
    return min(tries, key=lambda pair: pair[1])


def _index_paths(config: Config) -> tuple[str, list[str]]:
    """Return where the training sets are read from, and the paths of their index files below it."""
    from denoise.data.shards import INDEX

    root = Path() if config.data.url is not None else Path("shards")
    return data_place(config), [str(root / set_path("train", name) / INDEX) for name in config.data.train]


def _check_mlflow(uri: str, answers: Mapping[str, object] | None, hosts: int) -> list[Finding]:
    address = without_passwords(uri)
    if answers is not None:
        return by_host("mlflow", f"{address} answers all", errors_by_host(answers))
    if hosts == 1:
        return [Finding("mlflow", "ok", f"{address} is a file of this machine")]
    says = (
        f"{address} is a file, which other hosts do not see: a run that moves there is recorded afterwards, from "
        "ray.storage; set tracking.uri to a server"
    )
    return [Finding("mlflow", "warning", says)]


def _check_sweeps(storage: str) -> Finding:
    """Check tune.storage, which only the driver opens."""
    address = without_passwords(storage)
    if not storage_exists(storage):
        return Finding("sweeps", "ok", f"{address} does not exist yet; the first sweep creates it")
    try:
        open_storage(storage)
    except UserError as error:
        return Finding("sweeps", "problem", str(error).rstrip("."))
    return Finding("sweeps", "ok", f"{address} can be opened")


def _check_capacity(config: Config) -> Finding:
    try:
        config = fit_to_cluster(config)
    except UserError as error:
        return Finding("room", "problem", str(error).rstrip("."))
    return check_capacity(worker_capacity(config), config.ray.worker_count, config.ray.min_workers)
