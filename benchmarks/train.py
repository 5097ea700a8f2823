"""Images per second of training: through Ray, through torchrun, and of a bare loop, two processes each, in one run.

The bare loop is the limit: the same net, loss and optimizer on a batch that is already in memory and noisy, in two
processes that do not know each other. torchrun adds reading, noise and the averaging of gradients; Ray adds itself.
Beside a run on Ray MLflow is imported at the lowest priority, which takes half a minute where no processor is idle:
--start 45 measures what comes after it.

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
SPAN = 2  # seconds of a row
COMMON = ["train.crop=64", f"train.batch_size={BATCH}", "train.eval_every=1000000", "train.checkpoint_every=1000000"]
CLI = [sys.executable, "-m", "pipelines.cli", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]


def bare(config: Config, seconds: float) -> float:
    """Return the images per second of this process alone on its share of a batch that is in memory."""
    import torch

    from denoise.data.samples import IMAGE, make_views
    from denoise.methods import with_net
    from denoise.nets import NetMaker
    from denoise.precision import autocast
    from denoise.rng import batch_rng
    from denoise.training.malloc import keep_freed_memory
    from denoise.training.optimizers import make_optimizer
    from denoise.training.setup import build_components
    from denoise.training.step import Objective

    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    config = with_net(config)
    method, noise, _ = build_components(config)
    net = method.make_net(NetMaker(config.net.name, 3, config.net.fields)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net.parameters(), config.train)
    share, objective = BATCH // WORLD, Objective(net, method)
    rng = batch_rng(0, 0, torch.arange(share))
    side = config.train.crop_pixels
    clean = torch.rand(share, 3, side, side).contiguous(memory_format=torch.channels_last)
    batch = method.make_batch(make_views({IMAGE: clean}, method, noise, rng), rng.stream("method"))

    def steps(duration: float) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < duration:
            with autocast(config.train.precision, torch.device("cpu")):
                loss = objective(batch, 0.5)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            count += 1
        return count * share / (time.perf_counter() - start)

    steps(seconds / 5)
    return steps(seconds)


def two_bare_loops(overrides: list[str], seconds: float) -> float:
    """Return the images per second of two bare loops in parallel."""
    command = [sys.executable, __file__, "--bare", str(seconds), *overrides]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WORLD)]
    return sum(float(process.communicate()[0]) for process in processes)


def rate_of(rows: list[dict[str, float]], every: int, start: float) -> float:
    """Return the rate over all steps but those of the first seconds and those with a validation."""
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row and "val_psnr" not in row]
    seconds = list(accumulate(every * BATCH / rate for rate in rates))
    steady = [rate for rate, elapsed in zip(rates, seconds, strict=True) if elapsed > start]
    return len(steady) / sum(1 / rate for rate in steady)


def launched(kind: str, overrides: list[str], name: str, folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run that torchrun or Ray starts."""
    if kind == "torchrun":
        command = [*TORCHRUN, "-m", "pipelines.cli", "train", "--name", name, *overrides]
        file = Path("runs") / name / "metrics.jsonl"
    else:
        storage = folder / "ray"
        services = [f"ray.workers={WORLD}", f"ray.storage={storage}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        command = [*CLI, "--name", name, *services, *overrides]
        file = storage / name / "journal" / "metrics.jsonl"
    subprocess.run([*command, f"--out={folder / name}"], check=True, capture_output=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    shutil.rmtree(Path("runs") / name, ignore_errors=True)
    return [row.get("metrics", row) for row in rows]


def measure(method: str, start: float, seconds: float, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return images per second by kind: one figure a round, the kinds taken in turn."""
    overrides = [f"method={method}", *COMMON]
    limit = two_bare_loops(overrides, 5)
    every = max(1, int(SPAN * limit / BATCH))
    steps = every * (1 + int((start + seconds) / SPAN))
    overrides += [f"train.steps={steps}", f"train.log_every={every}"]
    rates: dict[str, list[float]] = {"bare": [], "torchrun": [], "ray": []}
    for turn in range(rounds):
        rates["bare"].append(two_bare_loops(overrides, seconds))
        for kind in ("torchrun", "ray"):
            name = f"bench-{folder.name}-{method}-{kind}-{turn}"
            rates[kind].append(rate_of(launched(kind, overrides, name, folder), every, start))
    return rates


def median_ratio(rates: list[float], references: list[float]) -> str:
    """Return the median of the ratios within the rounds: the machine's own speed drifts between them."""
    return f"{statistics.median(rate / reference for rate, reference in zip(rates, references, strict=True)):.3f}"


def main() -> None:
    """Measure and print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["n2n", "n2v", "r2r", "ssdn"])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=float, default=10, help="seconds of a run that do not count")
    parser.add_argument("--bare", type=float, help=argparse.SUPPRESS)  # in the processes that this script starts
    options = parser.parse_args()
    if options.bare:
        print(bare(load_config(None, options.methods), options.bare))
        return
    print("| method | bare, images/s | torchrun / bare | Ray / torchrun |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for method in options.methods:
            rates = measure(method, options.start, options.seconds, options.rounds, Path(folder))
            ratios = [median_ratio(rates["torchrun"], rates["bare"]), median_ratio(rates["ray"], rates["torchrun"])]
            print(f"| {method} | {statistics.median(rates['bare']):.1f} | {' | '.join(ratios)} |", flush=True)
    if "ssdn" in options.methods:
        plain, blind = [], []
        for _ in range(options.rounds):
            plain.append(two_bare_loops(["method=n2c", "net=unet_ssdn", *COMMON], options.seconds))
            blind.append(two_bare_loops(["method=ssdn", *COMMON], options.seconds))
        times = median_ratio(plain, blind)
        print(f"\nssdn takes {times} times the time of its plain U-Net (n2c, net=unet_ssdn)")


if __name__ == "__main__":
    main()
