"""Images per second of training steps on a GPU, against the same net in eager fp32 in the same run, and the share of
the card's own bf16 matrix rate that they use.

A step is the whole one of `denoise train`: crops from the host's memory, noise, loss, gradients, optimizer. "fast" is
bf16, channels_last, the fused optimizer and torch.compile; "graphs" launches them as CUDA graphs besides. Operations
are those of eager fp32, counted once; a multiply and an add are two. Eager fp32 is PyTorch as it comes, which lets
convolutions compute in TF32.

It needs no Ray, MLflow or shards. --psnr instead trains on the shards of `samples` in the given folder, once in fp32
and once in bf16, and prints both validation PSNR.

    python benchmarks/gpu.py                                # papers' batches and crops, then batch 64
    python benchmarks/gpu.py n2n --psnr data/shards --steps 500
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from denoise.config import Config, load_config
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE
from denoise.data.shards import Shards
from denoise.methods import build_method, with_net
from denoise.noise import parse_noise
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
from denoise.training.loop import train
from denoise.training.setup import init_train_state
from denoise.training.step import TrainStep

# Crop side and batch of the papers' training (docs/methods.md names the sources).
PAPERS = {"n2n": (256, 4), "n2v": (64, 128), "ssdn": (256, 4), "r2r": (40, 128)}
EAGER = ("train.precision=fp32", "train.channels_last=false", "train.fused=false")
FAST = ("train.precision=bf16", "train.compile=true")
VARIANTS = {"eager": EAGER, "fast": FAST, "graphs": (*FAST, "train.cuda_graphs=true")}
WARM_UP = 5  # steps before the clock starts: compiling, capturing, choosing kernels
SIDE = 8192  # of the matrices whose product measures the card

Step = Callable[[], object]


def make_step(config: Config, device: torch.device) -> Step:
    """Return a training step on one batch of the host's memory."""
    config, noise = with_net(config), parse_noise(config.noise)
    method = build_method(config.method.name, config.method.fields, noise)
    train_step = TrainStep(config, init_train_state(config, method, device), method, noise)
    size, crop = config.train.batch_size, config.train.crop
    image = torch.randint(256, (size, 3, crop, crop), dtype=torch.uint8)
    batch = CropBatch(torch.arange(size), {IMAGE: image.pin_memory() if device.type == "cuda" else image})
    numbers = iter(range(config.train.steps))
    return lambda: train_step(next(numbers), batch, 1e-4)


def seconds_per_call(step: Step, device: torch.device, seconds: float) -> float:
    """Return the median time of a call, measured in groups that wait for the device once."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(WARM_UP):
        step()
    wait()
    start, count, times = time.perf_counter(), 1, []
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        times.append((time.perf_counter() - begin) / count)
        count = max(1, int(seconds / 10 / times[-1]))
    return statistics.median(times)


def operations(step: Step) -> int:
    """Return the floating-point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, seconds: float, side: int) -> float:
    """Return the operations per second of a bf16 matrix product."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_per_call(lambda: left @ right, device, seconds)


def compare(method: str, crop: int, batch: int, device: torch.device, seconds: float, rate: float) -> str:
    """Return a line of the table."""
    shape = (f"method={method}", f"train.crop={crop}", f"train.batch_size={batch}", "train.steps=1000000")
    steps = {name: make_step(load_config(None, [*shape, *extra]), device) for name, extra in VARIANTS.items()}
    work = operations(steps["eager"])
    times = {name: seconds_per_call(step, device, seconds) for name, step in steps.items()}
    best = min(times["fast"], times["graphs"])
    ratios = " | ".join(f"{times['eager'] / times[name]:.2f}" for name in ("fast", "graphs"))
    share = f"{work / best / rate:.1%}"
    return f"| {method} | {crop} | {batch} | {batch / times['eager']:.0f} | {batch / best:.0f} | {ratios} | {share} |"


def psnr(method: str, precision: str, shards: Path, steps: int) -> float:
    """Return the validation PSNR (protocol float) after that many steps."""
    rows: list[dict[str, float]] = []
    overrides = [f"method={method}", f"train.precision={precision}", f"train.steps={steps}"]
    config = load_config(None, [*overrides, f"train.eval_every={steps}", f"train.checkpoint_every={steps}"])
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        checkpoints = CheckpointManager(FolderStore(Path(folder) / "checkpoints"))
        train(
            config,
            train_set=samples(shards, "train"),
            val_set=samples(shards, "val"),
            folder=Path(folder),
            report=rows.append,
            checkpoints=checkpoints,
        )
    return rows[-1]["val_psnr"]


def samples(shards: Path, split: str) -> ShardedDataset:
    """Return the images of one split of `samples`."""
    return ShardedDataset([Shards.open(shards / split / "samples")])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(PAPERS))
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--crop", type=int, help="instead of the papers'")
    parser.add_argument("--batch", type=int, help="instead of the papers' and 64")
    parser.add_argument("--device", default="cuda", help="cpu shows that the script works, and little else")
    parser.add_argument("--psnr", type=Path, metavar="SHARDS", help="compare bf16 with fp32 instead")
    parser.add_argument("--steps", type=int, default=500, help="of --psnr")
    options = parser.parse_args()
    if options.psnr:
        for method in options.methods:
            fp32, bf16 = (psnr(method, precision, options.psnr, options.steps) for precision in ("fp32", "bf16"))
            print(f"{method}, {options.steps} steps: fp32 {fp32:.3f} dB, bf16 {bf16:.3f} dB (float)")
        return
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    rate = matrix_rate(device, options.seconds, SIDE if device.type == "cuda" else SIDE // 8)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: bf16 matrix product {rate / 1e12:.3g} Tflop/s\n")
    print("| method | crop | batch | eager fp32, images/s | best, images/s | fast / eager | graphs / eager | share |")
    print("|---|---|---|---|---|---|---|---|")
    for method in options.methods:
        crop, batch = PAPERS[method]
        for size in [options.batch] if options.batch else [batch, 64]:
            print(compare(method, options.crop or crop, size, device, options.seconds, rate), flush=True)


if __name__ == "__main__":
    main()
