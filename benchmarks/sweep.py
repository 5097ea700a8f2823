"""How well a sweep of many short trials keeps a cluster busy, and what it leaves behind.

A slot is what the workers of one trial need. Ray is asked twice a second how many slots are reserved. Between two
trials on one slot nothing is trained: the runs' journals say from when until when each trained. Afterwards Ray is asked
for actors, placement groups and resources that the sweep has not released, and the machine for processes.

Run it in a folder where `denoise demo` has made the shards of `samples`:  python benchmarks/sweep.py --trials 50

To compare with an earlier commit, run this same file, in the same folder, with the Python of a clone of that commit:
    OLD_CLONE/.venv/bin/python benchmarks/sweep.py --trials 50
"""

import argparse
import json
import os
import secrets
import socket
import statistics
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

SETTLE_SECONDS = 30.0  # that Ray gets to release what the last trial had
# Actors that Ray has once per cluster, from its start or from its first training on.
CLUSTER_ACTORS = ("DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor", "TrainStateActor")
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
class Occupancy:
    """Shares of the slots that were reserved, from the first trial's workers on."""

    slots: float
    reserved: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)  # share of the processors that were busy, with anything

    def sample(self, ended: threading.Event) -> None:
        """Take a sample twice a second until the sweep has ended."""
        import ray

        psutil.cpu_percent()
        while not ended.wait(0.5):
            reserved = self.slots - ray.available_resources().get("CPU", 0.0)
            if reserved or self.reserved:
                self.reserved.append(reserved / self.slots)
                self.processors.append(psutil.cpu_percent() / 100)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(slots: int) -> Iterator[tuple[str, psutil.Process]]:
    """Start a cluster of this machine; yield its address and the process that all its processes descend from."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += [f"--num-cpus={slots}", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
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


def unreleased() -> list[str]:
    """Return what Ray still holds for a sweep that has ended."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    names = [actor.class_name for actor in list_actors(limit=1000) if actor.state != "DEAD"]
    actors = [f"actor {name}" for name in names if name not in CLUSTER_ACTORS]
    groups = [
        f"placement group {group.placement_group_id}"
        for group in list_placement_groups(limit=1000)
        if group.state != "REMOVED"
    ]
    missing = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
    return [*actors, *groups] + [f"{missing:g} processors"] * bool(missing)


def processes(head: psutil.Process) -> list[str]:
    """Return the live processes of trials and workers; those that Ray keeps idle for the next task do not count."""
    commands = []
    for process in head.children(recursive=True):
        with suppress(psutil.Error):
            commands.append(" ".join(process.cmdline()).strip())
    workers = [command for command in commands if command.startswith("ray::") and "IDLE" not in command]
    return [command for command in workers if command.removeprefix("ray::") not in CLUSTER_ACTORS]


def run(trials: int, images: int, address: str, folder: Path) -> dict[str, Any]:
    """Run a sweep and return its summary."""
    space = folder / "many.yaml"
    space.write_text(SPACE.replace("IMAGES", str(images)))
    options = [f"ray.address={address}", f"ray.storage={folder}/ray", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    options += [f"tune.storage=sqlite:///{folder}/optuna.db", f"--trials={trials}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "tune", str(space), *options], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def trained(journal: Path) -> tuple[float, float] | None:
    """Return when a run of one attempt began its first step and ended its last one, in seconds since the epoch."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if "images_per_second" in line["metrics"]]
    if not rows:
        return None
    params = json.loads((journal.parent / "run.json").read_text(encoding="utf-8"))["params"]
    seconds = rows[0]["step"] * int(params["train.batch_size"]) / rows[0]["metrics"]["images_per_second"]
    return rows[0]["time"] / 1000 - seconds, rows[-1]["time"] / 1000


def pauses(storage: Path, slots: int) -> list[float]:
    """Return the seconds between the trainings of two trials, for every slot that was given to another trial."""
    times = [span for file in storage.glob("*/journal/metrics.jsonl") if (span := trained(file))]
    starts, ends = (sorted(moments) for moments in zip(*times, strict=True))
    return [start - end for start, end in zip(starts[slots:], ends, strict=False)]


def measure(trials: int, images: int, slots: int) -> dict[str, Any]:
    """Run the sweep on a cluster of its own and return the figures."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, cluster(slots) as (address, head):
        import ray  # reads the path of the token when it is imported

        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        occupancy, ended, began = Occupancy(slots), threading.Event(), time.monotonic()
        sampler = threading.Thread(target=occupancy.sample, args=(ended,))
        sampler.start()
        try:
            summary = run(trials, images, address, Path(folder))
            ended.set()
            seconds, deadline = time.monotonic() - began, time.monotonic() + SETTLE_SECONDS
            between = pauses(Path(folder) / "ray", slots)
            while (left_behind := unreleased() + processes(head)) and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            ended.set()
            sampler.join()
            ray.shutdown()
    last = max(index for index, share in enumerate(occupancy.reserved) if share)
    return {
        "trials": summary["trials"],
        "seconds": seconds,
        "seconds_between_trials": statistics.median(between) if between else None,
        "slots_reserved": sum(occupancy.reserved[:last]) / last,
        "processors_busy": sum(occupancy.processors[:last]) / last,
        "left_behind": left_behind,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--images", type=int, default=4800, help="of a trial that is not pruned")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # for Ray's own output
        figures = measure(options.trials, options.images, options.slots)
    print(json.dumps(figures, indent=1))
    raise SystemExit(bool(figures["left_behind"]))


if __name__ == "__main__":
    main()
