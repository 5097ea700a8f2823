"""Crops per second of our loader, compared with other loaders in one run.

Ours (verified, in the global order) with and without decoded images in memory, plain webdataset (shuffle and decode), a
torch Dataset that opens files with Pillow (as KAIR and most reports do), and the limit: the decoder alone in a bare
loop, on as many threads as ours has. All yield bytes: making floats of them costs the same for all.

    python benchmarks/loader.py IMAGES [IMAGES ...] --crops 64 256 --seconds 3 --rounds 3
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from denoise.data.dataset import ShardedDataset
from denoise.data.loader import Batching, batches
from denoise.data.sampler import GlobalSampler
from denoise.data.samples import FreshNoise
from denoise.data.shards import Shards
from denoise.images.io import decode_quickly
from denoise.sharding.writer import write_shards
from pipelines.datasets.shard import find_sources

BATCH = 16


class Files(Dataset):  # type: ignore[type-arg]
    """A folder of images, opened with Pillow and cropped at random."""

    def __init__(self, paths: list[Path], crop: int) -> None:
        self.paths, self.crop = paths, crop

    def __len__(self) -> int:
        """Return a number that no measurement reaches."""
        return 10**9

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return a crop of a random image."""
        with Image.open(random.choice(self.paths)) as image:
            return random_crop(np.asarray(image.convert("RGB")), self.crop)


def random_crop(pixels: np.ndarray, crop: int) -> torch.Tensor:
    """Return a random crop."""
    top = random.randrange(max(1, pixels.shape[0] - crop + 1))
    left = random.randrange(max(1, pixels.shape[1] - crop + 1))
    part = np.ascontiguousarray(pixels[top : top + crop, left : left + crop].transpose(2, 0, 1))
    return torch.from_numpy(part)


def rate(stream: Iterator[int], seconds: float) -> float:
    """Return the sum per second of the counts that a stream yields, after a second of warming up."""
    started = time.perf_counter()
    while time.perf_counter() - started < 1:
        next(stream)
    counted, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        counted += next(stream)
    return counted / (time.perf_counter() - started)


def ours(images: ShardedDataset, crop: int, threads: int) -> Iterator[int]:
    """Yield the sizes of our batches."""
    sampler = GlobalSampler(0, images.counts, images.digest)
    batching = Batching(0, BATCH, crop, 3, threads=threads)
    for batch in batches(FreshNoise(images), sampler, batching, 0, 1, 0):
        yield len(batch.views["image"])


def webdataset_plain(folder: Path, crop: int, workers: int) -> Iterator[int]:
    """Yield the sizes of batches of plain webdataset."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))] * 100

    def crop_one(sample: dict[str, np.ndarray]) -> torch.Tensor:
        pixels = next(value for key, value in sample.items() if key in ("jpg", "jpeg", "png"))
        return random_crop((pixels * 255).astype(np.uint8) if pixels.dtype != np.uint8 else pixels, crop)

    data = webdataset.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(100).decode("rgb8").map(crop_one)
    yield from map(len, DataLoader(data, BATCH, num_workers=workers))


def files_with_pillow(paths: list[Path], crop: int, workers: int) -> Iterator[int]:
    """Yield the sizes of batches of a Dataset over files."""
    yield from map(len, DataLoader(Files(paths, crop), BATCH, num_workers=workers))


def decoder_alone(datas: list[bytes], threads: int) -> Iterator[int]:
    """Yield 16 for every 16 decoded images."""
    with ThreadPoolExecutor(threads) as pool:
        parts = [datas[part::threads] for part in range(threads)]

        def decode(part: list[bytes], start: int) -> None:
            for place in range(BATCH):
                decode_quickly(part[(start + place) % len(part)], 3)

        start = 0
        while True:
            list(pool.map(decode, parts, [start] * threads))
            start += BATCH
            yield BATCH * threads


def measure(folder: Path, crop: int, seconds: float, threads: int, rounds: int) -> dict[str, float]:
    """Return crops a second of each loader on the images of a folder: the median of rounds, taken in turns."""
    paths = [path for source in find_sources(folder) for path in source.views.values()]
    with tempfile.TemporaryDirectory() as work:
        shards = Path(work, "shards")
        write_shards(shards, find_sources(folder), 16 << 20)
        images, decoded = ShardedDataset([Shards.open(shards)]), ShardedDataset([Shards.open(shards)])
        decoded.keep_decoded(4 << 30)
        for index in range(len(decoded)):
            decoded.pixels(index, "clean")
        loaders: dict[str, Callable[[], Iterator[int]]] = {
            "decoder alone": partial(decoder_alone, [path.read_bytes() for path in paths], threads),
            "ours, decoding": partial(ours, images, crop, threads),
            "ours, unchecked": partial(unchecked, images, crop, threads),
            "ours, decoded before": partial(ours, decoded, crop, threads),
            "webdataset": partial(webdataset_plain, shards, crop, threads),
            "files with Pillow": partial(files_with_pillow, paths, crop, threads),
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(rounds):
            for name, load in loaders.items():
                with closing(load()) as stream:  # type: ignore[type-var]
                    rates[name].append(rate(stream, seconds))
        decoded.close()
    return {name: median(values) for name, values in rates.items()}


def unchecked(images: ShardedDataset, crop: int, threads: int) -> Iterator[int]:
    """Yield the sizes of our batches without the checksum of each image, to measure its cost."""

    class AnyChecksum(int):
        """Equal to every checksum."""

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    with patch("denoise.data.shards.zlib", SimpleNamespace(crc32=lambda data: AnyChecksum())):
        yield from ours(images, crop, threads)


def main() -> None:
    """Print a table and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--crops", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a DataLoader's worker: the threads that decode are the only ones
    results = []
    for folder in options.folders:
        for crop in options.crops:
            rates = measure(folder, crop, options.seconds, options.threads, options.rounds)
            results.append(
                {"folder": folder.name, "crop": crop, **{name: round(value, 1) for name, value in rates.items()}}
            )
            print(f"\n{folder.name}, crops of {crop}, {options.threads} threads or workers")
            for name, value in rates.items():
                print(f"  {name:28} {value:9.0f} crops/s")
            limit, pillow = rates["decoder alone"], rates["files with Pillow"]
            print(f"  decoding: {rates['ours, decoding'] / limit:.2f} of the decoder alone, ", end="")
            print(f"{rates['ours, decoding'] / rates['webdataset']:.2f} x webdataset; ", end="")
            print(f"decoded before: {rates['ours, decoded before'] / pillow:.1f} x files with Pillow; ", end="")
            print(f"checks cost {1 - rates['ours, decoding'] / rates['ours, unchecked']:.1%}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
