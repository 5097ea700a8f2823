"""Places of a cluster that a sweep keeps taken, and what it leaves behind: many short trials on a full cluster.

A place is what the workers of one trial need. Twice a second Ray is asked how many are taken: one is empty from the end
of a trial until the next has reserved its workers. Afterwards Ray is asked for actors, placement groups and
resources that the sweep has not given back, and the machine for processes.

Run it in a folder where `denoise demo` has made the shards of `samples`:  python benchmarks/sweep.py --trials 50
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SETTLE_SECONDS = 30.0  # that Ray gets to give back what the last trial had
# What Ray has once a cluster, from its start or from its first training on.
CLUSTERS_OWN = ("DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor", "TrainStateActor")
SPACE = """\
title: many short trials
config: {net: cnn5, train: {crop: 64}, ray: {workers: 1}}
space:
  train.lr: {float: [1.0e-5, 1.0e-2], log: true}
  train.batch_size: {choice: [2, 4, 8]}
sampler: random
pruner: asha
evaluations: 8
images: IMAGES
"""


@dataclass
class Taken:
    """How many of the places were taken, from the first trial's workers on."""

    places: float
    shares: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)  # share of them that computes, whatever it is

    def watch(self, ended: threading.Event) -> None:
        """Look twice a second until the sweep has ended."""
        import ray

        psutil.cpu_percent()
        while not ended.wait(0.5):
            taken = self.places - ray.available_resources().get("CPU", 0.0)
            if taken or self.shares:
                self.shares.append(taken / self.places)
                self.processors.append(psutil.cpu_percent() / 100)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(places: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a cluster of this machine; yield its address and the process above all of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += [f"--num-cpus={places}", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={free_port()}"]
        head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            while "Ray runtime started" not in (line := head.stdout.readline()):  # type: ignore[union-attr]
                if not line:
                    raise SystemExit("ray start has ended")
            threading.Thread(target=head.stdout.read, daemon=True).start()  # type: ignore[union-attr]
            yield f"127.0.0.1:{port}", psutil.Process(head.pid)
        finally:
            head.terminate()
            head.wait()


def left() -> list[str]:
    """Return what Ray still holds for a sweep that has ended."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    actors = [one.class_name for one in list_actors(limit=1000) if one.state != "DEAD"]
    found = [f"actor {name}" for name in actors if name not in CLUSTERS_OWN]
    found += [
        f"placement group {one.placement_group_id}"
        for one in list_placement_groups(limit=1000)
        if one.state != "REMOVED"
    ]
    missing = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
    return found + [f"{missing:g} processors"] * bool(missing)


def processes(head: psutil.Process) -> list[str]:
    """Return the processes of trials and workers that live; one that Ray keeps for the next task has nothing."""
    found = []
    for process in head.children(recursive=True):
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    ours = [words.strip() for words in found if words.startswith("ray::") and "IDLE" not in words]
    return [words for words in ours if words.removeprefix("ray::") not in CLUSTERS_OWN]


def run(trials: int, images: int, address: str, folder: Path) -> dict[str, Any]:
    """Run a sweep and return its summary."""
    space = folder / "many.yaml"
    space.write_text(SPACE.replace("IMAGES", str(images)))
    where = [f"ray.address={address}", f"ray.storage={folder}/ray", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    where += [f"tune.storage=sqlite:///{folder}/optuna.db", f"--trials={trials}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "tune", str(space), *where], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def measure(trials: int, images: int, places: int) -> dict[str, Any]:
    """Run the sweep on a cluster of its own and return what was seen."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, cluster(places) as (address, head):
        import ray  # which reads the token's place when it is imported

        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        taken, ended, began = Taken(places), threading.Event(), time.monotonic()
        watcher = threading.Thread(target=taken.watch, args=(ended,))
        watcher.start()
        try:
            found = run(trials, images, address, Path(folder))
            ended.set()
            seconds, deadline = time.monotonic() - began, time.monotonic() + SETTLE_SECONDS
            while (kept := left() + processes(head)) and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            ended.set()
            watcher.join()
            ray.shutdown()
    last = max(index for index, share in enumerate(taken.shares) if share)
    return {
        "trials": found["trials"],
        "seconds": seconds,
        "places_taken": sum(taken.shares[:last]) / last,
        "processors_busy": sum(taken.processors[:last]) / last,
        "left_behind": kept,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--images", type=int, default=4800, help="of a trial that is not pruned")
    parser.add_argument("--places", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # where Ray's words belong
        found = measure(options.trials, options.images, options.places)
    print(json.dumps(found, indent=1))
    raise SystemExit(bool(found["left_behind"]))


if __name__ == "__main__":
    main()
