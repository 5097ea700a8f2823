"""What a training step costs the host: operations by phase, waits for the device, and processor time, method by method.

An operation is one call into ATen that computes (views are left out), on a GPU about one launch of a kernel; their
number depends neither on the size of crops nor on that of the batch. Waits are found without a GPU: the net is put on
the meta device, where whatever needs a value fails, and copies from the host that block are listed.

    python benchmarks/step.py                        # counts of every method, and n2n with more costly options
    python benchmarks/step.py n2n ssdn --seconds 5   # processor time of a step as well: the least of five rounds
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from denoise.config import load_config
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE, TAUGHT
from denoise.methods import METHODS, build_method, with_net
from denoise.noise import parse_noise
from denoise.training.checkpoint import RunProgress
from denoise.training.history import TrainingHistory
from denoise.training.setup import init_train_state
from denoise.training.step import TrainStep

CASES = {
    name: (f"method={name}", f"noise={'gauss25' if 'gauss' in (method.families or ('gauss',)) else 'poisson30'}")
    for name, method in METHODS.items()
    if method.trained
} | {
    "n2n, poisson30": ("method=n2n", "noise=poisson30"),
    "n2n, text0.25": ("method=n2n", "noise=text0.25"),
    "n2n, ema": ("method=n2n", "train.ema=0.999"),
}
PHASES = ("batch", "forward", "backward", "optimizer", "history")
ON_META = ("train.optimizer=sgd", "train.fused=false")  # fused kernels and the counter of Adam are not for that device
BATCH, STEPS = 4, 1000

Step = Callable[[], None]


class Operations(TorchDispatchMode):
    """Counts operations by phase, and lists copies from the host that block."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.counts, self.blocking = "", Counter[str](), list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            self.counts[self.phase] += 1
        name = func._schema.name
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[name == "aten::copy_"]
            blocks = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            if blocks and source.device != result.device:
                self.blocking.append(f"{self.phase}: {name} of {tuple(source.shape)} from {source.device}")
        return result


class Literals(TorchFunctionMode):
    """Lists tensors that are made of Python's numbers on the device: copies as well, which a dispatch mode misses."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking = list[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.device.type == "meta" and result is not args[0]:
            self.blocking.append(f"{func.__name__} of {args[0]}")
        return result


def make_step(overrides: tuple[str, ...], device: torch.device, crop: int, operations: Operations) -> Step:
    """Return a training step with its part of the history, on one batch; it tells ``operations`` its phases."""
    shape = (f"train.crop={crop}", f"train.batch_size={BATCH}", f"train.steps={STEPS}", "train.precision=bf16")
    config = with_net(load_config(None, [*shape, *overrides]))
    noise = parse_noise(config.noise)
    method = build_method(config.method.name, config.method.fields, noise)
    train_state, history = init_train_state(config, method, device), TrainingHistory(RunProgress(), device)
    teacher = (lambda noisy, level, rng: noisy) if TAUGHT in method.views() else None  # one that costs nothing
    train_step = TrainStep(config, train_state, method, noise, teacher=teacher)
    train_step.device = device

    def enter(phase: str) -> Callable[..., None]:
        return lambda *_: setattr(operations, "phase", phase)

    train_step.objective.register_forward_pre_hook(enter("forward"))
    train_step.objective.register_forward_hook(enter("backward"))
    train_state.optimizer.register_step_pre_hook(enter("optimizer"))
    image = torch.randint(256, (BATCH, crop, crop, config.data.channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    batch, numbers = CropBatch(torch.arange(BATCH), {IMAGE: image}, list(range(BATCH))), iter(range(STEPS))

    def step() -> None:
        operations.phase, number = "batch", next(numbers)
        terms = train_step(number, batch, 1e-4)
        operations.phase = "history"
        history.record_step(number, batch, terms)

    return step


def operations_of_step(overrides: tuple[str, ...]) -> Counter[str]:
    """Return the operations of the second step, by phase: caches are filled by then."""
    operations = Operations()
    step = make_step(overrides, torch.device("cpu"), 32, operations)
    step()
    with operations:
        step()
    return operations.counts


def waits_of_step(overrides: tuple[str, ...]) -> list[str]:
    """Return what the host waits for in a step on another device.

    Raises:
        NotImplementedError, RuntimeError: something asks that device for a value.
    """
    operations = Operations()
    with patch("torch.autocast", lambda *_, **__: nullcontext()):  # which does not know the meta device
        step = make_step((*overrides, *ON_META), torch.device("meta"), 32, operations)
        step()
        with operations, Literals() as literals:
            step()
    return operations.blocking + literals.blocking


def milliseconds_of_step(overrides: tuple[str, ...], seconds: float, crop: int) -> float:
    """Return the processor time of a step on one thread, the least of five rounds."""
    torch.set_num_threads(1)
    step, rounds = make_step(overrides, torch.device("cpu"), crop, Operations()), []
    step()
    for _ in range(5):
        start, begin, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds / 5:
            step()
            count += 1
        rounds.append((time.process_time() - begin) / count)
    return min(rounds) * 1e3


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help="methods, or names of this table")
    parser.add_argument("--seconds", type=float, default=0, help="of measuring processor time for each case; 0: none")
    parser.add_argument("--crop", type=int, default=64, help="of measuring processor time")
    options = parser.parse_args()
    timed = " ms of processor time |" if options.seconds else ""
    print(f"| method | all | {' | '.join(PHASES)} | blocking copies |{timed}")
    print("|---" * (len(PHASES) + 3 + bool(timed)) + "|")
    for case in options.cases:
        counts, waits = operations_of_step(CASES[case]), waits_of_step(CASES[case])
        row = [case, counts.total(), *(counts[phase] for phase in PHASES), len(waits)]
        if options.seconds:
            row.append(f"{milliseconds_of_step(CASES[case], options.seconds, options.crop):.1f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
