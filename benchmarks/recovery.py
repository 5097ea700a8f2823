"""Seconds from the death of a worker to the next training step: one run on Ray, whose workers are killed many times.

The journal of the run says when each step was done. A kill shows as a step that is done a second time; the time since
the last step before it is that of noticing, starting workers again, and reading the checkpoint.

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
APART, LATE = 10, 3  # steps between two kills, each so many steps after a checkpoint


def run(kills: int, folder: Path) -> list[dict[str, float]]:
    """Train a small net while a worker is killed so many times; return (step, time) of the journal, in order."""
    steps = APART * (kills + 1)
    overrides = ["net=cnn5", f"train.steps={steps}", f"train.eval_every={steps}", f"train.checkpoint_every={EVERY}"]
    overrides += ["train.log_every=1", f"ray.max_failures={kills}", f"ray.storage={folder}/ray"]
    overrides += [f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    faults = [f"--inject=kill:rank={number % 2},step={APART * number + LATE}" for number in range(1, kills + 1)]
    command = [sys.executable, "-m", "pipelines.cli", "train", "--name=recovery", f"--out={folder}/model"]
    subprocess.run([*command, *faults, *overrides], check=True, capture_output=True)
    rows = (folder / "ray" / "recovery" / "journal" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, rows) if "loss" in row["metrics"]]


def gaps(rows: list[dict[str, float]]) -> tuple[list[float], list[int]]:
    """Return the seconds that each death has cost, and the steps that had to be done again."""
    pairs = [(one, two) for one, two in pairwise(rows) if two["step"] <= one["step"]]
    seconds = [(two["time"] - one["time"]) / 1000 for one, two in pairs]
    return seconds, [int(one["step"] - two["step"] + 1) for one, two in pairs]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        seconds, lost = gaps(run(parser.parse_args().kills, Path(folder)))
    p95 = sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    print(
        f"{len(seconds)} deaths: median {statistics.median(seconds):.1f} s, p95 {p95:.1f} s, most {max(seconds):.1f} s"
    )
    print(f"steps done again: median {statistics.median(lost):g}, most {max(lost)} (a checkpoint every {EVERY})")


if __name__ == "__main__":
    main()
