"""Images per second of training steps on a GPU, against the same net in eager fp32 in the same run, and the share of
the card's own bf16 matrix rate that they use.

A step is the whole one of `denoise train`: crops from the host's memory, noise, loss, gradients, optimizer. "graph" is
bf16, channels_last and the fused optimizer, launched as one CUDA graph; "compiled" has torch.compile in place of the
graph; "both" has both. Operations are those of eager fp32, counted once; a multiply and an add are two. Eager fp32 is
PyTorch as it comes, which lets convolutions compute in TF32. GiB is the most memory that eager fp32 held.

The whole table is laid out for ten minutes and 80 GB: variants are measured and freed one after another, none is
started once the time of its row is spent ("-"), and one that finds no memory says so. It needs no Ray, MLflow or
shards. --psnr instead trains on the shards of `samples` in the given folder, once in fp32 and once in bf16, and prints
both validation PSNR.

    python benchmarks/gpu.py                                # papers' batches and crops, then large ones
    python benchmarks/gpu.py n2n --psnr data/shards --steps 500
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from denoise import distributed
from denoise.config import Config, load_config
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE
from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.methods import build_method, with_net
from denoise.noise import parse_noise
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
from denoise.training.loop import train
from denoise.training.setup import init_train_state
from denoise.training.step import TrainStep

# Crop side and batch: those of the papers' training (docs/methods.md names the sources), then a large one. Eager fp32
# keeps 18 KiB a pixel for ssdn, 8 for r2r, 2 for n2n and n2v: at most 32 GiB here.
SHAPES = {
    "n2n": ((256, 4), (256, 64)),
    "ssdn": ((256, 4), (256, 16)),
    "n2v": ((64, 128), (256, 64)),
    "r2r": ((40, 128), (256, 64)),
}
BF16 = ("train.precision=bf16",)
VARIANTS = {
    "eager": ("train.precision=fp32", "train.channels_last=false", "train.fused=false", "train.compile=no"),
    "graph": (*BF16, "train.compile=no", "train.cuda_graphs=true"),
    "compiled": (*BF16, "train.compile=yes"),
    "both": (*BF16, "train.compile=yes", "train.cuda_graphs=true"),
}
FAST = ("graph", "compiled", "both")
WARM_UP = 5  # steps before the clock starts: compiling, capturing, choosing kernels
SIDE = 8192  # of the matrices whose product measures the card

Step = Callable[[], object]


def make_step(config: Config, device: torch.device) -> Step:
    """Return a training step on one batch of the host's memory."""
    config, noise = with_net(config), parse_noise(config.noise)
    method = build_method(config.method.name, config.method.fields, noise)
    train_step = TrainStep(config, init_train_state(config, method, device), method, noise)
    size, crop = config.train.batch_size, config.train.crop_pixels
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


@dataclass(frozen=True)
class Measurement:
    """What a variant takes, or a word that says why that is not known."""

    seconds: float = float("inf")  # of a step
    operations: int = 0  # of a step
    memory: float = float("nan")  # the most that PyTorch has held, GiB
    missing: str = ""

    def images(self, batch: int) -> str:
        """Return the images per second."""
        return self.missing or f"{batch / self.seconds:.0f}"

    def gain_over(self, other: "Measurement") -> str:
        """Return how many times as fast as the other it is."""
        return self.missing or other.missing or f"{other.seconds / self.seconds:.2f}"


NOT_STARTED, NO_MEMORY = Measurement(missing="-"), Measurement(missing="no memory")


def measure(overrides: tuple[str, ...], device: torch.device, seconds: float) -> Measurement:
    """Return what a step of a configuration takes; nothing of it is left in memory."""
    if device.type != "cuda" and "train.cuda_graphs=true" in overrides:
        return NOT_STARTED
    try:
        return _measure(load_config(None, overrides), device, seconds)
    except (RuntimeError, UserError) as error:
        if not is_out_of_memory(error):
            raise
        return NO_MEMORY
    finally:
        torch.compiler.reset()
        gc.collect()  # a step and its graph refer to one another
        torch.cuda.empty_cache()


def _measure(config: Config, device: torch.device, seconds: float) -> Measurement:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = make_step(config, device)
    duration = seconds_per_call(step, device, seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    counted = config.train.compile == "no" and not config.train.cuda_graphs  # others hide their operations
    return Measurement(duration, operations(step) if counted else 0, memory)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Say whether an error, or one that it was raised in the place of, is a lack of memory on the device."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error.__context__))


def compare(
    method: str, crop: int, batch: int, device: torch.device, seconds: float, deadline: float, rate: float
) -> str:
    """Return a line of the table; no variant is started after ``deadline``."""
    shape = (f"method={method}", f"train.crop={crop}", f"train.batch_size={batch}", "train.steps=1000000")
    results = dict.fromkeys(VARIANTS, NOT_STARTED)
    for name, extra in VARIANTS.items():
        if time.perf_counter() < deadline:
            results[name] = measure((*shape, *extra), device, seconds)
    eager, best = results["eager"], min((results[name] for name in FAST), key=lambda result: result.seconds)
    gains = [results[name].gain_over(eager) for name in FAST]
    share = best.missing or eager.missing or f"{eager.operations / best.seconds / rate:.1%}"
    cells = [method, crop, batch, eager.images(batch), best.images(batch), *gains, share, f"{eager.memory:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


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


def print_psnr(method: str, shards: Path, steps: int) -> None:
    """Print what fp32 and bf16 reach."""
    fp32, bf16 = (psnr(method, precision, shards, steps) for precision in ("fp32", "bf16"))
    print(f"{method}, {steps} steps: fp32 {fp32:.3f} dB, bf16 {bf16:.3f} dB (float)", flush=True)


def print_table(options: argparse.Namespace, device: torch.device) -> None:
    """Measure the card, then print each row as soon as it is measured."""
    torch.backends.cudnn.benchmark = True
    rate = matrix_rate(device, options.seconds, SIDE if device.type == "cuda" else SIDE // 8)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: bf16 matrix product {rate / 1e12:.3g} Tflop/s\n")
    print("| method | crop | batch | eager fp32, images/s | best, images/s | graph | compiled | both | share | GiB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for method in options.methods:
        shapes = SHAPES[method] if not options.batch else [(SHAPES[method][0][0], options.batch)]
        for crop, batch in shapes:
            deadline = time.perf_counter() + options.row_seconds
            side = options.crop or crop
            print(compare(method, side, batch, device, options.seconds, deadline, rate), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(SHAPES), metavar="METHOD", help=", ".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--row-seconds", type=float, default=50, help="of a row, after which no variant is started")
    parser.add_argument("--crop", type=int, help="instead of the papers'")
    parser.add_argument("--batch", type=int, help="instead of the papers' and the large one")
    parser.add_argument("--device", default="cuda:0", help="cpu shows that the script works, and little else")
    parser.add_argument("--psnr", type=Path, metavar="SHARDS", help="compare bf16 with fp32 instead")
    parser.add_argument("--steps", type=int, default=500, help="of --psnr")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu shows that the script works")
    distributed.use_device(device)
    if not options.psnr:
        print_table(options, device)
        return
    for method in options.methods:
        print_psnr(method, options.psnr, options.steps)


if __name__ == "__main__":
    main()
