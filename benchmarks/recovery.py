"""Seconds from the death of a worker to the next training step: one run on Ray, whose workers are killed many times.

The journal of the run says when each step was done. A kill shows as a step that is done a second time; the time since
the step before it is spent on noticing the death, starting workers again, and reading the checkpoint.

Run it in a folder where `denoise demo` has made the shards of `samples`:  python benchmarks/recovery.py --kills 20
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

EVERY = 5  # steps between two checkpoints
KILL_EVERY, KILL_AFTER = 10, 3  # steps between two kills; steps between a checkpoint and a kill


def run(kills: int, folder: Path) -> list[dict[str, float]]:
    """Train a small net while a worker is killed ``kills`` times; return the journal's rows with a loss, in order."""
    steps = KILL_EVERY * (kills + 1)
    overrides = ["net=cnn5", f"train.steps={steps}", f"train.eval_every={steps}", f"train.checkpoint_every={EVERY}"]
    overrides += ["train.log_every=1", f"ray.max_failures={kills}", f"ray.storage={folder}/ray"]
    overrides += [f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    faults = [
        f"--inject=kill:rank={number % 2},step={KILL_EVERY * number + KILL_AFTER}" for number in range(1, kills + 1)
    ]
    command = [sys.executable, "-m", "pipelines.cli", "train", "--name=recovery", f"--out={folder}/model"]
    subprocess.run([*command, *faults, *overrides], check=True, capture_output=True)
    rows = (folder / "ray" / "recovery" / "journal" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, rows) if "loss" in row["metrics"]]


def gaps(rows: list[dict[str, float]]) -> tuple[list[float], list[int]]:
    """Return the seconds that each death cost, and how many steps had to be repeated."""
    pairs = [(before, after) for before, after in pairwise(rows) if after["step"] <= before["step"]]
    seconds = [(after["time"] - before["time"]) / 1000 for before, after in pairs]
    return seconds, [int(before["step"] - after["step"] + 1) for before, after in pairs]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        seconds, repeated = gaps(run(parser.parse_args().kills, Path(folder)))
    p95 = sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    print(
        f"{len(seconds)} deaths: median {statistics.median(seconds):.1f} s, p95 {p95:.1f} s, most {max(seconds):.1f} s"
    )
    print(
        f"steps done again: median {statistics.median(repeated):g}, most {max(repeated)} (a checkpoint every {EVERY})"
    )


if __name__ == "__main__":
    main()
