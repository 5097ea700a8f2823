"""The global order of samples for data that no machine holds: its cost and its quality, simulated without an image.

Time and memory to find a worker's next samples, the shards that each node downloads in an epoch, and how well samples
are mixed. The figures of docs/scale.md come from here.

    python benchmarks/scale.py --samples 1_000_000_000 --shards 100_000 --workers 1000 --per-node 8
"""

import argparse
import json
import time
import tracemalloc

import numpy as np

from denoise.data.sampler import GlobalSampler


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


def main() -> None:
    """Print one line for each number of streams, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[4000, 4096])
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 500, 1000, 4000])
    parser.add_argument("--window", type=int, default=4)
    options = parser.parse_args()
    mean = options.samples // options.shards
    counts = tuple(np.random.default_rng(0).integers(mean * 4 // 5, mean * 6 // 5, options.shards).tolist())
    results = []
    for streams in options.streams:
        for batch in options.batch:
            sampler = GlobalSampler(0, counts, "simulated", streams, options.window)
            figures = {
                "streams": streams,
                "batch": batch,
                **lookup(sampler, batch, options.workers),
                **traffic(sampler, batch, options.workers, options.per_node, 3),
                **mixing(sampler),
            }
            results.append({name: round(value, 4) for name, value in figures.items()})
            print(results[-1], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
