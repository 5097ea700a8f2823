"""How far PSNR that is estimated without clean images lies from the truth, on sets that have clean images.

Each denoiser (a Gaussian filter, and the given models) restores some images of each set under each noise. Its PSNR is
measured, and estimated in three ways: with a second observation, by SURE with the noise that was added, and by SURE
with noise measured in the noisy images; on the real noise of PolyU only the last can be. An interval of 90 % should
hold the truth in 85 to 95 % of cases: of subsets of the images, ``interval`` the mean over the subset,
``interval_alike`` that over all the images. Run it in a project folder with shards of the sets.

    python benchmarks/psnr_without_clean.py models/dncnn --images 10 --out psnr-without-clean.jsonl
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from denoise.config import Config, to_dict
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser, load_denoiser, make_card
from denoise.estimate import Extent, estimate
from denoise.evaluate import evaluate, get_protocol
from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.quality import ErrorEstimate, Source, mean_psnr
from pipelines.datasets.layout import shard_folder

SETS = {"bsd68": 1, "cbsd68": 3, "kodak": 3}  # with the channels of the Gaussian filter
NOISES = ("gauss15", "gauss25", "poisson30", "corr25_0.8")
SOURCES: tuple[Source, ...] = ("second observation", "SURE, known noise", "SURE, measured noise")
REAL = "polyu"
SUBSETS, SUBSET = 200, 4  # drawn of the images of a set, and how many images each has
WIDTH, REACH = 1.0, 4  # of the Gaussian filter, in pixels


class GaussianFilter(nn.Module):
    """A Gaussian filter with reflection at the borders."""

    multiple = 1

    def forward(self, noisy: Tensor) -> Tensor:
        """Return the filtered batch (B, C, H, W)."""
        weights = torch.exp(-torch.arange(-REACH, REACH + 1.0).square() / (2 * WIDTH**2))
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        channels = noisy.shape[1]
        extended = pad(noisy, (REACH,) * 4, mode="reflect")
        return conv2d(extended, kernel.expand(channels, 1, -1, -1), groups=channels)


@dataclass(frozen=True)
class Case:
    """A denoiser on a set under a noise."""

    denoiser: str
    data: str
    noise: str
    truth: dict[str, float]  # image -> PSNR
    estimates: dict[str, Any]  # source -> what ``estimate`` returned of it


def cases(models: Sequence[Path], root: Path, images: int, only: Sequence[str]) -> Iterator[Case]:
    """Yield all cases, as they are computed."""
    protocol = get_protocol("float")
    for data in (*SETS, REAL):
        if only and data not in only:
            continue
        shards = Shards.open(shard_folder(root, "test", data))
        denoisers = {"gaussian": gaussian(SETS.get(data, 1))} | {model.name: load_denoiser(model) for model in models}
        for noise_name in NOISES if data in SETS else ("none",):
            noise = parse_noise(noise_name)
            for name, denoiser in denoisers.items():
                measured = evaluate(denoiser, shards, data, noise, protocol, images=images)
                truth = {image["name"]: image["psnr"] for image in measured["images"]}
                sources = SOURCES if data in SETS else SOURCES[2:]
                estimates = {
                    source: estimate(denoiser, shards, data, noise, protocol, source=source, extent=Extent(images))[
                        "estimate"
                    ]
                    for source in sources
                }
                yield Case(name, data, noise_name, truth, estimates)


def gaussian(channels: int) -> Denoiser:
    """Return the Gaussian filter as a denoiser."""
    method = build_method("n2n", {}, parse_noise("gauss25"))
    return Denoiser(GaussianFilter().eval(), method, make_card(to_dict(Config()), channels))


def error(case: Case, source: str) -> float:
    """Return the error of the estimated mean PSNR of a set, in dB."""
    return float(case.estimates[source]["estimated_psnr"]) - fmean(case.truth.values())


def coverage(case: Case, source: str) -> tuple[float, float]:
    """Return how often the two intervals hold the truth, over subsets of the images.

    For ``interval`` each image is in a subset once; for ``interval_alike`` subsets are drawn with replacement, as if
    the images were all that there are.
    """
    estimate = case.estimates[source]
    images = {
        image["name"]: ErrorEstimate(image["estimated_mse"], image["standard_error"], image["fidelity"])
        for image in estimate["images"]
    }
    whole, names, draws = fmean(case.truth.values()), sorted(images), random.Random(0)
    held = [0, 0]
    for _ in range(SUBSETS):
        once, again = draws.sample(names, min(SUBSET, len(names))), draws.choices(names, k=SUBSET)
        these, alike = (
            mean_psnr([images[name] for name in subset], estimate["noise_uncertainty"]) for subset in (once, again)
        )
        truth = fmean(case.truth[name] for name in once)
        for place, (interval, target) in enumerate(((these.interval, truth), (alike.interval_alike, whole))):
            held[place] += interval is not None and interval[0] <= target <= interval[1]
    return held[0] / SUBSETS, held[1] / SUBSETS


def main() -> None:
    """Print a row a case, then the errors and coverages of each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="model folders")
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=10, help="of each set")
    parser.add_argument("--sets", nargs="*", default=[], help="some of the sets")
    parser.add_argument(
        "--out", type=Path, help="a file to append the rows to, as JSON lines; the summary is of all in it"
    )
    arguments = parser.parse_args()
    lines = []
    print("| set | noise | denoiser | PSNR | " + " | ".join(SOURCES) + " |")
    print("|---|---|---|---|---|---|---|")
    for case in cases(arguments.models, arguments.root, arguments.images, arguments.sets):
        found = {source: (error(case, source), *coverage(case, source)) for source in case.estimates}
        cells = [f"{found[source][0]:+.2f}" if source in found else "-" for source in SOURCES]
        truth = fmean(case.truth.values())
        print(f"| {case.data} | {case.noise} | {case.denoiser} | {truth:.2f} | " + " | ".join(cells) + " |", flush=True)
        lines.append({"set": case.data, "noise": case.noise, "denoiser": case.denoiser, "psnr": truth, "found": found})
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    if arguments.out:
        lines = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    summarise(lines)


def summarise(lines: Sequence[dict[str, Any]]) -> None:
    """Print the errors and coverages of each source, over all cases."""
    print("\n| source | cases | mean size of the error | worst | interval held | interval_alike held |")
    print("|---|---|---|---|---|---|")
    for source in SOURCES:
        rows = [line["found"][source] for line in lines if source in line["found"]]
        if rows:
            errors = [abs(row[0]) for row in rows]
            sizes = f"{fmean(errors):.2f} | {max(errors):.2f}"
            held = " | ".join(f"{fmean(row[place] for row in rows):.0%}" for place in (1, 2))
            print(f"| {source} | {len(errors)} | {sizes} | {held} |")


if __name__ == "__main__":
    sys.exit(main())
