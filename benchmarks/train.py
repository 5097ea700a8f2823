"""Images per second of training: through Ray, through torchrun, and of a bare loop, two processes each, in one run.

The bare loop is the limit: the same net, loss and optimizer on a batch that is already in memory and noisy, in two
processes that do not know each other. torchrun adds reading, noise and the averaging of gradients; Ray adds itself.

Run it in a folder where `denoise demo` has made the shards of `samples`:  python benchmarks/train.py n2n ssdn
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from denoise.config import Config, load_config

WORLD, BATCH = 2, 4
SPAN, START = 2, 10  # seconds: of a row, and until everything has started
COMMON = ["train.crop=64", f"train.batch_size={BATCH}", "train.eval_every=1000000", "train.checkpoint_every=1000000"]
CLI = [sys.executable, "-m", "pipelines.cli", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]


def bare(config: Config, seconds: float) -> float:
    """Return the images per second of this process alone on its share of a batch that is in memory."""
    import torch

    from denoise.data.samples import IMAGE, make_views
    from denoise.methods import with_net
    from denoise.nets import NetMaker
    from denoise.rng import batch_rng
    from denoise.training.checkpoint import TrainState
    from denoise.training.loop import check, resolve_precision
    from denoise.training.malloc import keep_freed_memory
    from denoise.training.optimizers import make_optimizer
    from denoise.training.step import Objective

    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    config = with_net(config)
    method, noise, _ = check(config)
    net = method.make_net(NetMaker(config.net.name, 3, config.net.fields)).to(memory_format=torch.channels_last)
    training = TrainState(net, make_optimizer(net.parameters(), config.train))
    share, objective = BATCH // WORLD, Objective(net, method)
    rng = batch_rng(0, 0, torch.arange(share))
    clean = torch.rand(share, 3, config.train.crop, config.train.crop).contiguous(memory_format=torch.channels_last)
    batch = method.make_batch(make_views({IMAGE: clean}, method, noise, rng), rng.stream("method"))
    half = resolve_precision(config.train.precision, torch.device("cpu")) == "bf16"

    def steps(duration: float) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < duration:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = objective(batch, 0.5)["loss"]
            loss.backward()
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
            count += 1
        return count * share / (time.perf_counter() - start)

    steps(seconds / 5)
    return steps(seconds)


def bare_in_two(overrides: list[str], seconds: float) -> float:
    """Return the images per second of two bare loops side by side."""
    command = [sys.executable, __file__, "--bare", str(seconds), *overrides]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WORLD)]
    return sum(float(process.communicate()[0]) for process in both)


def rate_of(rows: list[dict[str, float]], every: int) -> float:
    """Return the rate of all steps but those in which things still start (a worker imports MLflow) or it validates."""
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row and "val_psnr" not in row]
    seconds = list(accumulate(every * BATCH / rate for rate in rates))
    steady = [rate for rate, at in zip(rates, seconds, strict=True) if at > START]
    return len(steady) / sum(1 / rate for rate in steady)


def through(kind: str, overrides: list[str], every: int, name: str, folder: Path) -> float:
    """Return the images per second of a run through torchrun or Ray."""
    if kind == "torchrun":
        command = [*TORCHRUN, "-m", "pipelines.cli", "train", "--name", name, *overrides]
        file = Path("runs") / name / "metrics.jsonl"
    else:
        storage = folder / "ray"
        where = [f"ray.workers={WORLD}", f"ray.storage={storage}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        command = [*CLI, "--name", name, *where, *overrides]
        file = storage / name / "journal" / "metrics.jsonl"
    subprocess.run([*command, f"--out={folder / name}"], check=True, capture_output=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    shutil.rmtree(Path("runs") / name, ignore_errors=True)
    return rate_of([row.get("metrics", row) for row in rows], every)


def measure(method: str, seconds: float, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return images per second by kind, in some rounds in turn."""
    overrides = [f"method={method}", *COMMON]
    limit = bare_in_two(overrides, 5)
    every = max(1, int(SPAN * limit / BATCH))
    steps = every * (1 + int((START + seconds) / SPAN))
    overrides += [f"train.steps={steps}", f"train.log_every={every}"]
    rates: dict[str, list[float]] = {"bare": [], "torchrun": [], "ray": []}
    for turn in range(rounds):
        rates["bare"].append(bare_in_two(overrides, seconds))
        for kind in ("torchrun", "ray"):
            name = f"bench-{folder.name}-{method}-{kind}-{turn}"
            rates[kind].append(through(kind, overrides, every, name, folder))
    return rates


def median_ratio(ones: list[float], others: list[float]) -> str:
    """Return the median of the ratios within the rounds: the machine's own speed drifts between them."""
    return f"{statistics.median(one / other for one, other in zip(ones, others, strict=True)):.3f}"


def main() -> None:
    """Measure and print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["n2n", "n2v", "r2r", "ssdn"])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=float, help=argparse.SUPPRESS)  # what a process of its own is started for
    chosen = parser.parse_args()
    if chosen.bare:
        print(bare(load_config(None, chosen.methods), chosen.bare))
        return
    print("| method | bare, images/s | torchrun / bare | Ray / torchrun |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for method in chosen.methods:
            rates = measure(method, chosen.seconds, chosen.rounds, Path(folder))
            ratios = [median_ratio(rates["torchrun"], rates["bare"]), median_ratio(rates["ray"], rates["torchrun"])]
            print(f"| {method} | {statistics.median(rates['bare']):.1f} | {' | '.join(ratios)} |", flush=True)
    if "ssdn" in chosen.methods:
        ways = {"plain": ["method=n2c", "net=unet_ssdn", *COMMON], "blind": ["method=ssdn", *COMMON]}
        found = [{key: bare_in_two(way, chosen.seconds) for key, way in ways.items()} for _ in range(chosen.rounds)]
        times = median_ratio([one["plain"] for one in found], [one["blind"] for one in found])
        print(f"\nssdn takes {times} times the time of its plain U-Net (n2c, net=unet_ssdn)")


if __name__ == "__main__":
    main()
