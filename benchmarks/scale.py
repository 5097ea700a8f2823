"""Data that no machine holds, read by many workers: what a worker and the driver do before and beside training.

Simulated without an image: an index of all shards, and lists of the samples of some of them, in a temporary folder.

- start: a worker opens the set: time, and the memory that stays with it.
- plan: what the main thread of a worker computes for a step.
- leakage: the driver looks for test images in the training set, for the first time and again.
- decoded: the memory that a host takes for a cache of decoded images.
- order: time and memory to find a worker's next samples, the shards that each node downloads in an epoch, and how well
  samples are mixed.

The figures of docs/scale.md come from here.

    python benchmarks/scale.py --samples 1_000_000_000 --shards 100_000 --workers 1000 --per-node 8
"""

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from denoise.data import decoded_cache
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import PLANNED, Batching, batches
from denoise.data.sampler import GlobalSampler
from denoise.data.samples import IMAGE
from denoise.data.shards import FORMAT, INDEX, Shards
from denoise.files import write_json
from denoise.sharding.leakage import refuse_overlap, training_images
from denoise.sharding.result_cache import ResultCache

SAMPLE = """\
 {{
  "key": "{number:012d}",
  "name": "n01560419/n01560419_{number}.JPEG",
  "views": {{
   "clean": {{
    "bytes": 101019,
    "crc32": 3072116120,
    "grey": "{sha256}",
    "height": 500,
    "look": "{look}",
    "member": "jpeg",
    "mode": "RGB",
    "offset": 1536,
    "pixels": "{sha256}",
    "quick": true,
    "width": 375
   }}
  }}
 }}"""


def simulate(folder: Path, counts: list[int], listed: int, seed: int) -> Path:
    """Write the index of a set, and the lists of the first shards until they hold ``listed`` samples."""
    rng, entries = np.random.default_rng(seed), []
    folder.mkdir()
    for number, count in enumerate(counts):
        name, size, sha256 = f"{number:06d}", 5_000_000, rng.bytes(32).hex()
        if listed > 0:
            listed -= count
            hashes = rng.bytes(32 * count)
            rows = (hashes[32 * row : 32 * row + 32].hex() for row in range(count))
            samples = (SAMPLE.format(number=row, sha256=text, look=text[:16]) for row, text in enumerate(rows))
            text = ("[\n" + ",\n".join(samples) + "\n]\n").encode()
            (folder / f"{name}.json").write_bytes(text)
            size, sha256 = len(text), hashlib.sha256(text).hexdigest()
        entry = {"file": f"{name}.tar", "bytes": 1 << 30, "sha256": rng.bytes(32).hex(), "samples": count}
        entries.append({**entry, "samples_bytes": size, "samples_sha256": sha256})
    write_json(folder / INDEX, {"format": FORMAT, "shards": entries})
    return folder


def apart(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Return what a function returns in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory() -> float:
    """Return the memory of this process in MB."""
    return psutil.Process().memory_info().rss / 1e6


def start(folder: Path) -> dict[str, float]:
    """Return the time in which a worker opens a set, and the memory it takes and keeps, without and with its order."""
    before, started = memory(), time.process_time()
    images = ShardedDataset([Shards.open(folder, check=False)])
    seconds, opened = time.process_time() - started, memory() - before
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage counts the parent, before exec
    most = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6 - before
    sampler = GlobalSampler(0, images.counts, images.digest, 1000)
    sampler.samples(np.arange(1))
    sampler.samples(np.array([len(images)]))  # and the next epoch
    return {"open_s": seconds, "most_mb": most, "open_mb": opened, "with_order_mb": memory() - before}


class NoImages:
    """Samples that cost nothing."""

    def __len__(self) -> int:
        """Return a number of samples that does not matter."""
        return 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return an image of 8 x 8 pixels."""
        return {IMAGE: np.zeros((8, 8, 3), np.uint8)}


def plan(counts: list[int], batch_size: int, workers: int) -> dict[str, float]:
    """Return the processor time that the main thread of a worker spends on a step: the median, and the most."""
    sampler = GlobalSampler(0, counts, "simulated", 1000)
    stream = batches(NoImages(), sampler, Batching(0, batch_size, 8, 3, ("flip", "rotate")), 0, workers, 0)
    times = []
    for _ in islice(stream, 8):
        pass
    for _ in range(8 * PLANNED):
        started = time.thread_time()
        next(stream)
        times.append(1e3 * (time.thread_time() - started))
        time.sleep(0.002)  # a step
    stream.close()
    return {"median_ms": float(np.median(times)), "most_ms": max(times)}


def leakage(train: Path, test: Path, cache: Path) -> dict[str, float]:
    """Return the time to look for test images in the training set, and to make the set of its images."""
    sets = [Shards.open(folder, check=False) for folder in (train, test)]
    figures = {"images": float(len(sets[0]))}
    for turn in ("first", "again"):
        started = time.process_time()
        refuse_overlap([("train", sets[0])], [("test", sets[1])], (), ResultCache(cache))
        checked = time.process_time()
        training_images([sets[0]], ResultCache(cache))
        figures |= {f"check_{turn}_s": checked - started, f"set_{turn}_s": time.process_time() - checked}
    per_image = (figures["check_first_s"] + figures["set_first_s"]) / len(sets[0])
    return {**figures, "us_per_image": 1e6 * per_image, "extrapolated_hours_1e9": 1e9 * per_image / 3600}


def decoded(folder: Path, budget: int) -> dict[str, float]:
    """Return the memory that a cache of decoded images takes, and the share of the images that fits it."""
    images = ShardedDataset([Shards.open(folder, check=False)])
    with tempfile.TemporaryDirectory() as shared:
        decoded_cache.FOLDERS = (Path(shared),)
        images.keep_decoded(budget)
        taken = sum(path.stat().st_size for path in Path(shared).iterdir())
        images.close()
    return {"decoded_gb": images.decoded_size / 1e9, "share": budget / images.decoded_size, "taken_gb": taken / 1e9}


def lookup(sampler: GlobalSampler, batch_size: int, workers: int) -> dict[str, float]:
    """Return the time to find a worker's samples of a step, and the memory that the sampler takes."""
    tracemalloc.start()
    started = time.perf_counter()
    sampler.samples(np.arange(1))
    first = time.perf_counter() - started
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = []
    for step in range(50):
        numbers = step * batch_size + np.arange(batch_size)
        started = time.perf_counter()
        sampler.samples(numbers[sampler.positions_of_rank(numbers, step % workers, workers)])
        times.append(time.perf_counter() - started)
    return {"first_ms": 1e3 * first, "step_ms": 1e3 * float(np.median(times)), "memory_mb": memory / 1e6}


def traffic(sampler: GlobalSampler, batch_size: int, workers: int, per_node: int, nodes: int) -> dict[str, float]:
    """Return how many shards some nodes download in an epoch, per shard that they would need, and use at a time."""
    downloaded, at_once, steps = 0, 0, len(sampler) // batch_size

    def shards(node: int, step: int) -> set[int]:
        numbers = step * batch_size + np.arange(batch_size)
        positions = [sampler.positions_of_rank(numbers, node * per_node + rank, workers) for rank in range(per_node)]
        return set(sampler.shards(sampler.samples(numbers[np.concatenate(positions)])).tolist())

    for node in range(nodes):
        seen: set[int] = set()
        for step in np.linspace(0, steps - 1, min(steps, 4000)).astype(int):
            seen |= shards(node, int(step))
        downloaded += len(seen)
        near = range(steps // 3, steps // 3 + 50)
        at_once = max(at_once, len(set.union(*(shards(node, step) for step in near))))
    needed = nodes * len(sampler.counts) * per_node / workers
    return {"downloaded_per_needed": downloaded / needed, "shards_in_use": at_once}


def mixing(sampler: GlobalSampler, count: int = 20_000) -> dict[str, float]:
    """Return how far the order of an epoch is from the stored one, and from its own neighbours."""
    places = np.linspace(0, len(sampler) - 1, count).astype(np.int64)
    samples = sampler.samples(places)
    near = sampler.samples(np.arange(count))
    return {
        "rank_correlation": float(np.corrcoef(np.argsort(np.argsort(samples)), np.arange(count))[0, 1]),
        "neighbour_correlation": float(np.corrcoef(near[1:], near[:-1])[0, 1]),
        "shards_in_1000_samples": float(len(set(sampler.shards(near[:1000]).tolist()))),
    }


def print_figures(name: str, figures: dict[str, float]) -> dict[str, Any]:
    """Print figures on one line and return them with their name."""
    rounded = {"figures": name, **{key: float(f"{value:.4g}") for key, value in figures.items()}}
    print(rounded, flush=True)
    return rounded


def main() -> None:
    """Print one line for each part, for each number of streams, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="*", default=[4000, 4096], help="none: without the order")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 500, 1000, 4000])
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--images", type=int, default=10**6, help="whose fingerprints the leakage check reads")
    options = parser.parse_args()
    mean = options.samples // options.shards
    counts = np.random.default_rng(0).integers(mean * 4 // 5, mean * 6 // 5, options.shards).tolist()
    with tempfile.TemporaryDirectory(prefix="denoise-scale-") as name:
        place = Path(name)
        whole = simulate(place / "whole", counts, 1, seed=0)
        results = [
            print_figures("start", apart(start, whole)),
            print_figures("plan", apart(plan, counts, options.batch[0] if options.batch else 4000, options.workers)),
            print_figures("decoded", apart(decoded, whole, 2048 << 20)),
        ]
        train = simulate(place / "train", [10_000] * (options.images // 10_000), options.images, seed=1)
        test = simulate(place / "test", [100], 100, seed=2)
        results.append(print_figures("leakage", apart(leakage, train, test, place / "cache")))
    for streams in options.streams if options.batch else ():
        for batch in options.batch:
            sampler = GlobalSampler(0, counts, "simulated", streams, options.window)
            figures = {
                "streams": streams,
                "batch": batch,
                **lookup(sampler, batch, options.workers),
                **traffic(sampler, batch, options.workers, options.per_node, 3),
                **mixing(sampler),
            }
            results.append(print_figures("order", figures))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
