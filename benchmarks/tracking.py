"""The cost of an absent MLflow: a run during which the server is killed and started again, and a run without a server.

The journal of a run says when each row was written, so the times of steps with and without a server come from the same
process. Afterwards everything must be in MLflow, each step once.

Run it in a folder where `denoise demo` has made the shards of `samples`:  python benchmarks/tracking.py --seconds 60
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from pipelines.tracking.server import start_server, wait_until_up

CLI = [sys.executable, "-m", "pipelines.cli"]
NAME = "tracking"
EVERY = 5  # steps of a row


class Tracker:
    """An MLflow server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.database, self.address = f"sqlite:///{folder}/mlflow.db", f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = start_server(self.database, self.port)
        wait_until_up(self.process, "127.0.0.1", self.port)

    def kill(self) -> None:
        """Kill it and all its workers."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Run:
    """A training run of one worker on Ray."""

    def __init__(self, name: str, tracker: Tracker, folder: Path) -> None:
        self.file = folder / "ray" / name / "journal" / "metrics.jsonl"
        overrides = ["train.steps=1000000", f"train.log_every={EVERY}", "train.eval_every=1000000", "ray.workers=1"]
        overrides += ["train.checkpoint_every=1000000", "train.crop=64", f"ray.storage={folder}/ray"]
        command = [*CLI, "train", f"--name={name}", *overrides, f"tracking.uri={tracker.address}"]
        with (folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def rows(self) -> list[dict[str, float]]:
        """Return the rows with a loss: their step, and when they were written, in seconds."""
        if not self.file.exists():
            return []
        rows = [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]
        return [{"step": row["step"], "time": row["time"] / 1000} for row in rows if "loss" in row["metrics"]]

    def wait(self) -> None:
        """Wait until it trains."""
        while len(self.rows()) < 5:
            if self.process.poll() is not None:
                raise SystemExit("the run has ended before it trained")
            time.sleep(0.5)

    def stop(self) -> None:
        """Let it save a checkpoint and end."""
        self.process.terminate()
        self.process.wait()


def step_time(rows: list[dict[str, float]], begin: float, end: float) -> float:
    """Return the median milliseconds of a step between two moments."""
    times = [row["time"] for row in rows if begin <= row["time"] <= end]
    return 1000 * statistics.median((later - earlier) / EVERY for earlier, later in pairwise(times))


def compared(run: Run, name: str, tracker: Tracker) -> str:
    """Say how many rows of a run MLflow lacks, and how many it holds twice."""
    from mlflow import MlflowClient

    api = MlflowClient(tracker.address)
    ids = [entity.info.run_id for entity in api.search_runs(["1"]) if entity.info.run_name == name]
    steps = [metric.step for run_id in ids for metric in api.get_metric_history(run_id, "loss")]
    missing = {int(row["step"]) for row in run.rows()} - set(steps)
    return f"{len(ids)} run in MLflow, {len(missing)} rows missing, {len(steps) - len(set(steps))} twice"


def interrupted(tracker: Tracker, seconds: float, rounds: int, folder: Path) -> None:
    """Kill the server repeatedly in the middle of a run, and print the ratios."""
    tracker.start()
    run = Run(NAME, tracker, folder)
    run.wait()
    time.sleep(10)  # the first steps are slower: other things still start
    up, down = [], []
    for _ in range(rounds):
        for times in (up, down):
            begin = time.time()
            time.sleep(seconds)
            times.append((begin, time.time()))
            tracker.kill() if times is up else tracker.start()
        time.sleep(5)  # the backlog is written
    run.stop()
    with_server, without = ([step_time(run.rows(), *span) for span in spans] for spans in (up, down))
    ratios = [time_without / time_with for time_with, time_without in zip(with_server, without, strict=True)]
    print(f"step with a server {statistics.median(with_server):.1f} ms, without {statistics.median(without):.1f} ms;")
    print(
        f"ratio without / with: {', '.join(f'{ratio:.4f}' for ratio in ratios)}, median {statistics.median(ratios):.4f}"
    )
    print(compared(run, NAME, tracker))


def without(tracker: Tracker, seconds: float, folder: Path) -> None:
    """Train without a server, and send afterwards what the run has logged."""
    tracker.kill()
    run = Run("never", tracker, folder)
    run.wait()
    time.sleep(seconds)
    run.stop()
    tracker.start()
    settings = ["-S", f"ray.storage={folder}/ray", "-S", f"tracking.uri={tracker.address}"]
    subprocess.run([*CLI, "runs", "sync", "never", *settings], check=True, stdout=subprocess.DEVNULL)
    print(f"without a server for the whole run, after `denoise runs sync`: {compared(run, 'never', tracker)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="that the server is there, and is not")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        tracker = Tracker(Path(folder))
        try:
            interrupted(tracker, options.seconds, options.rounds, Path(folder))
            without(tracker, options.seconds / 2, Path(folder))
        finally:
            tracker.kill()


if __name__ == "__main__":
    main()
