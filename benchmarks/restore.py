"""Time and memory of ``denoise restore``, beside one pass of the net over the whole image in bf16.

Every run is a process of its own, so that another clone can be measured by this script:

    python benchmarks/restore.py --models models/n2n models/ssdn
    python benchmarks/restore.py --models models/n2n --sizes 512x512 1024x1024 --python ../old/.venv/bin/python
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from denoise.denoiser import load_denoiser
from denoise.images.io import DecodedImage, write_image

SIZES = ("512x512", "1024x1024", "4000x3000", "8000x6000", "100x256x256", "6x2000x1500")  # [count x] width x height
# The peak memory of a child counts that of the process that forks it: a small one does.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
LARGEST_PASS = 1024 * 1024  # pixels; a whole pass over more may not fit into memory


def parse_size(size: str) -> tuple[int, int, int]:
    """Return the number of images, their width and their height."""
    *count, width, height = map(int, size.split("x"))
    return count[0] if count else 1, width, height


def make_images(folder: Path, size: str) -> Path:
    """Write noise on a gradient, which PNG compresses as badly as a noisy photograph, and return the input."""
    count, width, height = parse_size(size)
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).normal(0, 25, (height, width, 3))
        pixels = (noise + np.linspace(40, 215, width)[None, :, None]).clip(0, 255).astype(np.uint8)
        write_image(folder / f"{index:03d}.png", DecodedImage(pixels))
    return folder


def run(python: Path, images: Path, out: Path, model: Path, options: list[str]) -> tuple[float, float, float]:
    """Return seconds, processor seconds and peak memory in MB of one ``denoise restore``."""
    command = [
        str(python),
        "-m",
        "pipelines.cli",
        "restore",
        str(images),
        "-o",
        str(out),
        "--model",
        str(model),
        *options,
    ]
    start = time.perf_counter()
    clone = python.parents[2]  # whose code the process imports
    environment = os.environ | {"PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1"}
    (out.parent / "params.yaml").write_bytes((clone / "params.yaml").read_bytes())
    launch = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launch, cwd=out.parent, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    cpu, peak = map(float, done.stdout.split())
    return time.perf_counter() - start, cpu, peak / 1024


def whole_pass(model: Path, size: str) -> float | None:
    """Return the least processor seconds of three passes in bf16, None where the image is too large or not one."""
    count, width, height = parse_size(size)
    if count > 1 or width * height > LARGEST_PASS:
        return None
    denoiser = replace(load_denoiser(model), precision="bf16")
    noisy, seconds = torch.rand(1, denoiser.channels, height, width), []
    for _ in range(3):
        start = time.process_time()
        denoiser(noisy)
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Print a line for each model and size; the start of a process, measured on an image of 64x64, is not counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="[COUNTx]WIDTHxHEIGHT")
    parser.add_argument("--python", default=sys.executable, help="of the clone to measure, in its .venv/bin")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of denoise restore, at the end")
    arguments = parser.parse_args()
    python = Path(arguments.python).absolute()  # not resolved: a link names its environment
    print("model | size | seconds | CPU seconds | without start | peak MB | without start / whole bf16 pass")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        small = make_images(scratch / "start", "64x64")
        for size in arguments.sizes:
            make_images(scratch / size, size)
        for model in (path.resolve() for path in arguments.models):
            _, start, _ = run(python, small, scratch / "out", model, arguments.options)
            for size in arguments.sizes:
                seconds, cpu, peak = run(python, scratch / size, scratch / "out", model, arguments.options)
                whole = whole_pass(model, size)
                ratio = f"{(cpu - start) / whole:.2f}" if whole else "-"
                line = f"{model.name} | {size} | {seconds:.1f} | {cpu:.1f} | {cpu - start:.1f} | {peak:.0f} | {ratio}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
