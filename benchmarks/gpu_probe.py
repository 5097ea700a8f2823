"""What a training step costs on a card: time by phase, kernels, waits by line, and the whole step as one CUDA graph;
whether keyed randomness has the same bits there; how fast convolutions are whose channels are no multiple of 8.

Times are milliseconds a call, the card's work included; in brackets, what the host takes to issue it.

    python benchmarks/gpu_probe.py                        # some minutes on a GPU
    python benchmarks/gpu_probe.py --small --device cpu   # shows that the script works, and little else
"""

import argparse
import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from denoise import distributed
from denoise.config import load_config
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE
from denoise.methods import Batch, with_net
from denoise.precision import autocast
from denoise.rng import batch_rng
from denoise.training.checkpoint import RunProgress
from denoise.training.history import TrainingHistory
from denoise.training.setup import build_components, init_train_state
from denoise.training.step import TrainStep

CASES = ["n2n 256 4", "n2n 64 64", "ssdn 256 4", "n2v 64 64", "r2r 64 64"]  # method, crop, batch
SMALL_CASES = ["n2n 32 2", "ssdn 96 2"]
# Channels in and out: those of the nets' odd layers (99, 3), and the multiples of 8 beside them.
CONVOLUTIONS = [(99, 64), (104, 64), (96, 64), (3, 48), (8, 48), (32, 3), (32, 8), (144, 96), (48, 48)]
GROUP = 5  # calls between two waits

Call = Callable[[], object]


def make_probe(case: str, *overrides: str) -> tuple[TrainStep, CropBatch, Call]:
    """Return the training step of a case in bf16, a batch, and a call that takes a step on it and records it."""
    (name, crop, size), device = case.split(), distributed.device()
    shape = (f"method={name}", f"train.crop={crop}", f"train.batch_size={size}", "train.steps=1000000")
    config = with_net(load_config(None, [*shape, "train.precision=bf16", *overrides]))
    method, noise, _ = build_components(config)
    train_step = TrainStep(config, init_train_state(config, method, device), method, noise, on_message=print)
    image = torch.randint(256, (int(size), int(crop), int(crop), 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    views = {IMAGE: image.pin_memory() if device.type == "cuda" else image}
    batch = CropBatch(torch.arange(int(size)), views, range(int(size)))
    numbers, history = count(), TrainingHistory(RunProgress(), device)

    def step() -> None:
        number = next(numbers)
        history.record_step(number, batch, train_step(number, batch, 1e-4))

    return train_step, batch, step


def show(name: str, call: Call, groups: int) -> float:
    """Print what a call takes, the median over groups that wait for the device once, and return it."""
    wait = torch.cuda.synchronize if distributed.device().type == "cuda" else lambda: None
    for _ in range(2 * GROUP):  # chooses kernels, compiles, captures
        call()
    wait()
    whole, issued = [], []
    for _ in range(groups):
        start = time.perf_counter()
        for _ in range(GROUP):
            call()
        issued.append(1e3 * (time.perf_counter() - start) / GROUP)
        wait()
        whole.append(1e3 * (time.perf_counter() - start) / GROUP)
    print(f"{name:28} {statistics.median(whole):9.3f} ({statistics.median(issued):.3f})", flush=True)
    return statistics.median(whole)


def show_phases(case: str, groups: int) -> None:
    """Print the time of a whole step and of its phases, each repeated by itself."""
    train_step, batch, step = make_probe(case, "train.compile=no")
    show("whole step", step, groups)
    device, optimizer = distributed.device(), train_step.train_state.optimizer
    crops = {IMAGE: batch.views[IMAGE].to(device)}

    def make_inputs() -> Batch:
        return train_step._make_inputs(crops, batch_rng(0, 0, batch.positions, device))

    inputs = make_inputs()

    def forward() -> Batch:
        with autocast(train_step.precision, device):
            return train_step.objective(inputs, 0.5)

    def both_passes() -> Batch:
        optimizer.zero_grad()
        return train_step._backward(inputs, 0.5, len(batch.positions))

    show("crops to the device", lambda: batch.views[IMAGE].to(device, non_blocking=True), groups)
    show("batch", make_inputs, groups)
    show("forward", forward, groups)
    show("forward and backward", both_passes, groups)
    show("optimizer", optimizer.step, groups)  # on the gradients of the last pass


def show_kernels_and_waits(case: str, groups: int) -> None:
    """Print what a step launches, and the lines where it waits for the device."""
    _, _, step = make_probe(case, "train.compile=no")
    show("whole step", step, groups)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event.time_range.elapsed_us() / 1e3 for event in events if not event.is_user_annotation]
    print(f"{len(kernels)} kernels, busy for {sum(kernels):.3f} ms")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "called a synchroni" in str(each.message)]
    print("waits:", dict(Counter(waits)))


def show_graphs(case: str, groups: int) -> None:
    """Print the time of a step as one CUDA graph, as it is and compiled."""
    for compiled in ("no", "yes"):
        _, batch, step = make_probe(case, "train.cuda_graphs=true", f"train.compile={compiled}")
        taken = show(f"one graph, train.compile={compiled}", step, groups)
        print(f"  {1e3 * len(batch.positions) / taken:.0f} images/s")
        torch.compiler.reset()


def show_randomness(side: int, groups: int) -> None:
    """Print whether the device draws the bits of the host, and what drawing takes."""
    device, shape = distributed.device(), (3, side, side)
    here = batch_rng(0, 7, torch.arange(4)).stream("noise")
    there = here.on(device)
    print("equal bits on host and device:", torch.equal(there.bits(1000).cpu(), here.bits(1000)))
    print("largest difference of normals:", (there.normal(*shape).cpu() - here.normal(*shape)).abs().max().item())
    show("keys of three streams", lambda: here.stream("a").stream("b").stream("c"), groups)
    show("keyed normals", lambda: there.normal(*shape), groups)
    show("torch.randn", lambda: torch.randn(4, *shape, device=device), groups)


def show_convolutions(side: int, groups: int) -> None:
    """Print the time and rate of both passes of 3x3 convolutions in bf16, channels last, batch 4."""
    for channels, features in CONVOLUTIONS:
        shapes = (4, channels, side, side), (features, channels, 3, 3), (4, features, side, side)
        drawn = [torch.randn(shape, device=distributed.device(), dtype=torch.bfloat16) for shape in shapes]
        tensors = [values.to(memory_format=torch.channels_last).requires_grad_() for values in drawn]
        taken = show(f"{channels} -> {features}", partial(convolve, *tensors), groups)
        print(f"  {3 * 2 * 9 * channels * features * 4 * side**2 / taken / 1e9:.3g} Tflop/s")


def convolve(image: Tensor, kernel: Tensor, gradient: Tensor) -> object:
    """Return the gradients of a convolution."""
    return torch.autograd.grad(F.conv2d(image, kernel, padding=1), (image, kernel), gradient)


def section(title: str, work: Call, *, possible: bool = True) -> None:
    """Print one part of the report; where it fails it says why, and the next one follows."""
    print(f"\n## {title}", flush=True)
    try:
        work() if possible else print("needs CUDA")
    except Exception as error:
        print(f"failed: {type(error).__name__}: {error}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few pixels: shows that the script works")
    parser.add_argument("--device", default="cuda:0", type=torch.device)
    options = parser.parse_args()
    on_cuda = options.device.type == "cuda"
    if on_cuda and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --small --device cpu shows that the script works")
    distributed.use_device(options.device)
    torch.backends.cudnn.benchmark = True
    cases, groups, side = (SMALL_CASES, 2, 16) if options.small else (CASES, 10, 256)
    print("torch", torch.__version__, torch.cuda.get_device_name() if on_cuda else "CPU")
    for case in cases:
        section(f"{case}: phases, ms (of the host)", partial(show_phases, case, groups))
        section(f"{case}: kernels and waits", partial(show_kernels_and_waits, case, groups), possible=on_cuda)
        section(f"{case}: one graph a step", partial(show_graphs, case, groups), possible=on_cuda)
    section("randomness", partial(show_randomness, side, groups))
    section("convolutions", partial(show_convolutions, side, groups))


if __name__ == "__main__":
    main()
