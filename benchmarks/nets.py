"""How much faster the nets' own forms of upsampling, activation and memory layout are than PyTorch's plain ones.

Forms take turns in one process, and what is compared is processor time, so that other work on the machine hardly
matters: the least and the median time of a form divided by those of the present one.

    python benchmarks/nets.py                       # passes of training on one thread, and restoring on two
    python benchmarks/nets.py train --rounds 40
    python benchmarks/nets.py restore --threads 2 --sides 512 1024
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from denoise.nets import NetMaker, unet, unet_n2v, unet_ssdn
from denoise.nets.upsampling import concat_upsampled, conv_above
from denoise.precision import autocast

CPU, LAYOUT = torch.device("cpu"), torch.channels_last
TRAINING = (
    ("unet_n2n", {}, 3, 2), ("unet_n2n", {}, 3, 4), ("unet_n2n", {}, 3, 16), ("unet_n2n", {}, 1, 4),
    ("unet_n2v", {}, 1, 4), ("unet_ssdn", {"blind_spot": True}, 3, 1),
)  # fmt: skip
RESTORING = (("unet_n2n", {}, 3), ("unet_n2n", {}, 1), ("unet_ssdn", {"blind_spot": True}, 3))

Pass = Callable[[], object]


def plain_concat(coarse: Tensor, skip: Tensor) -> Tensor:
    """Upsample and concatenate as PyTorch does it."""
    return torch.cat([F.interpolate(coarse, scale_factor=2, mode="nearest"), skip.to(coarse.dtype)], dim=1)


def plain_conv(layer: nn.Conv2d, coarse: Tensor, skip: Tensor, above: int = 1) -> Tensor:
    """Convolve the upsampled maps."""
    return _conv(layer, plain_concat(coarse, skip), above)


def fine_conv(layer: nn.Conv2d, coarse: Tensor, skip: Tensor, above: int = 1) -> Tensor:
    """Convolve the upsampled maps, kept in channels_last."""
    return _conv(layer, concat_upsampled(coarse, skip), above)


def _conv(layer: nn.Conv2d, maps: Tensor, above: int) -> Tensor:
    convolved: Tensor = conv_above(layer, maps) if above == 2 else layer(maps)
    return convolved


@contextmanager
def plain(activation: bool = True) -> Iterator[None]:
    """Let the nets upsample as PyTorch does it, and with ``activation`` also keep the input of unet_n2n's."""
    with ExitStack() as stack:
        for module in (unet, unet_ssdn, unet_n2v):
            stack.enter_context(patch.object(module, "concat_upsampled", plain_concat))
        for module in (unet, unet_ssdn):
            stack.enter_context(patch.object(module, "upsampled_conv", plain_conv))
        if activation:
            stack.enter_context(patch.object(unet, "_relu", lambda x: F.leaky_relu(x, unet.SLOPE)))
        yield


@contextmanager
def fine() -> Iterator[None]:
    """Let the nets convolve at full resolution only."""
    with patch.object(unet, "upsampled_conv", fine_conv), patch.object(unet_ssdn, "upsampled_conv", fine_conv):
        yield


def under(context: Callable[[], Any], run: Pass) -> Pass:
    """Return a pass that runs in a context."""

    def inside() -> None:
        with context():
            run()

    return inside


def take_turns(forms: dict[str, Pass], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time of every form in every round, after a first round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, run in forms.items():
            start = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def compare(title: str, forms: dict[str, Pass], rounds: int) -> None:
    """Print a row for each form but the last, the present one."""
    seconds = take_turns(forms, rounds)
    present = seconds[list(forms)[-1]]
    for name in list(forms)[:-1]:
        least = min(seconds[name]) / min(present)
        median = statistics.median(seconds[name]) / statistics.median(present)
        print(f"| {title} | {name} | {1e3 * min(present):.0f} ms | {least:.2f} x | {median:.2f} x |", flush=True)


def train(rounds: int) -> None:
    """Compare forward and backward passes of batches of 64x64."""
    for precision in ("bf16", "fp32"):
        for name, form, channels, size in TRAINING:
            net = NetMaker(name, channels, {})(**form).to(memory_format=LAYOUT)
            noisy = torch.rand(size, channels, 64, 64).contiguous(memory_format=LAYOUT)

            def learn(net: nn.Module = net, noisy: Tensor = noisy, precision: str = precision) -> None:
                with autocast(precision, CPU):
                    output = net(noisy)
                output.float().square().mean().backward()
                net.zero_grad()

            title = f"training, {name}, {precision}, {size}x{channels}x64x64"
            compare(title, {"plain": under(plain, learn), "present": learn}, rounds)


def restore(rounds: int, sides: list[int]) -> None:
    """Compare passes without gradients over square tiles."""
    for precision in ("bf16", "fp32"):
        for name, form, channels in RESTORING:
            net = NetMaker(name, channels, {})(**form).eval()
            fast = NetMaker(name, channels, {})(**form).eval().to(memory_format=LAYOUT)
            for side in sides:
                noisy = torch.rand(1, channels, side, side)

                def look(net: nn.Module, noisy: Tensor, precision: str = precision) -> None:
                    with torch.inference_mode(), autocast(precision, CPU):
                        net(noisy)

                def present(fast: nn.Module = fast, noisy: Tensor = noisy) -> None:
                    look(fast, noisy.contiguous(memory_format=LAYOUT))

                forms = {
                    "plain, channels first": under(plain, lambda net=net, noisy=noisy: look(net, noisy)),
                    "plain": under(plain, present),
                    "at full resolution": under(fine, present),
                    "present": present,
                }
                compare(f"restoring, {name}, {precision}, {channels}x{side}x{side}", forms, rounds)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("train", "restore"), help="what to compare; both if not given")
    parser.add_argument("--threads", type=int, help="threads; by default 1 for training, 2 for restoring")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024], help="of tiles to restore")
    options = parser.parse_args()
    torch.manual_seed(0)
    print("| pass | other form | present | other / present, least | median |\n|---|---|---|---|---|", flush=True)
    if "train" in (options.what or ["train"]):
        torch.set_num_threads(options.threads or 1)
        train(options.rounds)
    if "restore" in (options.what or ["restore"]):
        torch.set_num_threads(options.threads or 2)
        restore(options.rounds, options.sides)


if __name__ == "__main__":
    main()
