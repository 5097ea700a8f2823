"""Cost of keyed randomness: the fraction of a Noise2Noise step spent on drawing noise.

    python benchmarks/rng.py [--json]

Compared in the same run with the plain alternative, one torch.Generator per sample. The limit is 3 % of a step.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from denoise import distributed
from denoise.methods import build_method, observe
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.precision import resolve_precision
from denoise.rng import batch_rng

CASES = [(4, 64), (4, 256), (32, 64)]  # batch, crop
ROUNDS = 7


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median duration of ``work`` after one uncounted round."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(batch: int, crop: int, device: torch.device) -> dict[str, float]:
    """Return seconds of a step, of the two observations it draws, and of the same with one generator per sample."""
    torch.manual_seed(0)
    net = NetMaker("unet_n2n", 3, {})().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    clean = torch.rand(batch, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
    noise, positions = parse_noise("gauss25"), torch.arange(batch)
    method = build_method("n2n", {}, noise)
    use_bf16 = resolve_precision("auto", device) == "bf16"

    def draw() -> dict[str, torch.Tensor]:
        rng = batch_rng(0, 0, positions, device)
        return method.make_batch(observe(clean, noise, method.needs, rng), rng)

    def draw_with_generators() -> list[torch.Tensor]:
        images = []
        for index in range(2 * batch):
            generator = torch.Generator(device=device)
            generator.manual_seed(index)
            images.append(clean[0] + 0.1 * torch.randn(clean.shape[1:], generator=generator, device=device))
        return images

    batch_to_fit = draw()

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16):
            loss = method.loss(net, batch_to_fit, 0.5)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = {
        "step": median_seconds(step, device),
        "keyed": median_seconds(draw, device),
        "generators": median_seconds(draw_with_generators, device),
    }
    return {"batch": batch, "crop": crop, **seconds, "share": seconds["keyed"] / (seconds["keyed"] + seconds["step"])}


def main() -> None:
    """Measure every case and print a table, or JSON."""
    device = distributed.device()
    rows = [measure(batch, crop, device) for batch, crop in CASES]
    if "--json" in sys.argv:
        print(json.dumps({"device": str(device), "threads": torch.get_num_threads(), "rows": rows}, indent=1))
        return
    print(f"{device}, {torch.get_num_threads()} threads, median of {ROUNDS}")
    print("batch  crop   step ms  keyed ms  generators ms  keyed share of a step")
    for row in rows:
        step, keyed, plain = (row[name] * 1e3 for name in ("step", "keyed", "generators"))
        print(f"{row['batch']:5.0f} {row['crop']:5.0f} {step:9.1f} {keyed:9.2f} {plain:14.2f} {row['share']:22.1%}")


if __name__ == "__main__":
    main()
