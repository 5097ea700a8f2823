"""Speed of sharding: images per second, the cost of each part, and the time that ImageNet would take.

python benchmarks/shard.py IMAGES --jobs 1 2 --copies 20
"""

import argparse
import hashlib
import json
import tempfile
import time
from functools import partial
from pathlib import Path

from denoise.images.io import pixel_hash, read_image
from denoise.sharding.fingerprints import grey_hash, perceptual_hash
from denoise.sharding.writer import write_shards
from pipelines.datasets.shard import find_sources

IMAGENET = 1_281_167


def linked_copies(folder: Path, copies: int, target: Path) -> Path:
    """Return a folder that holds the images of another one several times, as links."""
    for copy in range(copies):
        for source in find_sources(folder):
            for path in source.views.values():
                link = target / str(copy) / source.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
    return target


def seconds_of_parts(folder: Path) -> dict[str, float]:
    """Return the seconds that each part of the work takes for an image, in one process."""
    paths = [path for source in find_sources(folder) for path in source.views.values()][:100]
    seconds = dict.fromkeys(("read", "decode", "pixel hash", "grey hash", "perceptual hash", "sha256"), 0.0)
    for path in paths:
        data = path.read_bytes()
        pixels = read_image(data).pixels
        works = (
            path.read_bytes,
            partial(read_image, data),
            partial(pixel_hash, pixels),
            partial(grey_hash, pixels),
            partial(perceptual_hash, pixels),
            partial(hashlib.sha256, data),
        )
        for name, work in zip(seconds, works, strict=True):
            started = time.perf_counter()
            work()
            seconds[name] += (time.perf_counter() - started) / len(paths)
    return seconds


def main() -> None:
    """Print a table and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--shard-mb", type=int, default=8)
    arguments = parser.parse_args()
    parts = seconds_of_parts(arguments.folder)
    total = sum(parts.values())
    print(
        "one image, one process: "
        + ", ".join(f"{name} {1000 * s:.2f} ms ({s / total:.0%})" for name, s in parts.items())
    )
    results = []
    with tempfile.TemporaryDirectory() as work:
        folder = linked_copies(arguments.folder, arguments.copies, Path(work, "raw"))
        count = sum(1 for _ in find_sources(folder))
        for jobs in arguments.jobs:
            started = time.perf_counter()
            write_shards(Path(work, f"shards-{jobs}"), find_sources(folder), arguments.shard_mb << 20, jobs=jobs)
            rate = count / (time.perf_counter() - started)
            hours = IMAGENET / rate / 3600
            print(
                f"{jobs} processes: {rate:.0f} images/s; ImageNet train ({IMAGENET:,}) would take {hours:.1f} h",
                flush=True,
            )
            results.append({"jobs": jobs, "images_per_second": round(rate, 1), "imagenet_hours": round(hours, 2)})
    print(json.dumps({"milliseconds": {name: round(1000 * s, 3) for name, s in parts.items()}, "runs": results}))


if __name__ == "__main__":
    main()
