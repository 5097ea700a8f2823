"""Which method fits the noise of a folder: docs/methods.md, "Which one do I need?", applied to what was measured."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from denoise.noise_meter import CORRELATED, LITTLE, REACH, NoiseMeasurement
from pipelines.advise.folder import FolderNoise

UNCORRELATED = 0.1  # as far as this, correlation is taken for none
JPEG = 0.08  # median of ``block_edges``; images without JPEG have 0.05, with JPEG of quality 75 0.1 or more
VARYING = 1.25  # ratio of sigma in bright and dark parts, from which noise depends on the signal
SATURATED = 0.01  # share of values at the ends of the range
LARGEST_HOLE = 11  # side of what n2v or atbsn hides of an image; a larger one costs more than the correlation left
UNTRAINED = ("zs_n2n", "mash")  # the methods for these
FEW = 3  # samples, up to which there is nothing to train on
INDEPENDENT = (
    "n2v without method.structure",
    "n2s",
    "n2same",
    "nb2nb",
    "b2u",
    "ssdn",
    "r2r",
    "noisier2noise",
    "sure",
    "zs_n2n",
)
TOLD_SIGMA = ("r2r", "noisier2noise", "sure", "bm3d", "ssdn with a known level")


@dataclass(frozen=True)
class Advice:
    """A method, why it, how to train it, and what else the measurement says."""

    method: str  # empty: there is nothing to remove
    why: str
    keys: tuple[str, ...]  # of the configuration to train with, as KEY=VALUE; empty where nothing is trained
    commands: tuple[str, ...]
    unfit: tuple[tuple[str, str], ...]  # methods, and why not
    warnings: tuple[str, ...]


def advise(folder: Path, found: FolderNoise) -> Advice:
    """Return the method for a folder's noise."""
    method, why = _choice(found)
    keys = tuple(_keys(found, method)) if method not in ("", *UNTRAINED) else ()
    commands = tuple(_commands(folder, method, keys))
    return Advice(method, why, keys, commands, tuple(_unfit(found)), tuple(_warnings(found)))


def reach(noise: NoiseMeasurement) -> tuple[int, int]:
    """Return how many pixels down and to the right correlation above 0.1 reaches, counted without a gap."""
    down, right = (
        next((lag for lag in range(REACH) if noise.lag(*_along(axis, lag + 1)) <= UNCORRELATED), REACH)
        for axis in range(2)
    )
    return down, right


def _along(axis: int, lag: int) -> tuple[int, int]:
    return (lag, 0) if axis == 0 else (0, lag)


def stripes(noise: NoiseMeasurement) -> str:
    """Return "rows" or "columns" where the noise has such stripes: correlation reaches far along and not across."""
    down, right = reach(noise)
    if right == REACH and noise.lag(1, 0) < CORRELATED:
        return "rows"
    return "columns" if down == REACH and noise.lag(0, 1) < CORRELATED else ""


def ratio(noise: NoiseMeasurement) -> float:
    """Return sigma in bright over sigma in dark parts: where the measured range of brightness ends."""
    low, high = noise.sigma(noise.brightness.min().item()), noise.sigma(noise.brightness.max().item())
    return high / low if low > 0 else float("inf")


def _choice(found: FolderNoise) -> tuple[str, str]:
    if 2 * found.clean > found.samples:
        return "n2c", "most samples have a clean image, and training on those is the upper bound"
    if 2 * found.pairs > found.samples:
        return "n2n", "most samples have a second image of the scene, and its noise may be of any kind with mean 0"
    if found.series:
        return (
            "n2n",
            "successive images show one scene in which nothing moves, so that each is a second image of the last",
        )
    if not _noisy(found):
        return "", "there is hardly any noise, and what is measured of it is the images' own texture"
    if found.samples <= FEW:
        method = "mash" if _correlated(found.noise) else "zs_n2n"
        return method, f"{found.samples} images are too few to train on, and it trains on the image that it restores"
    return _for_single_images(found.noise)


def _for_single_images(noise: NoiseMeasurement) -> tuple[str, str]:
    if striped := stripes(noise):
        return "n2v", f"the noise is correlated along {striped}, and n2v can hide such neighbours of a pixel"
    if noise.neighbours > CORRELATED:
        return "atbsn", (
            "the noise of neighbours is correlated all around, and it predicts a pixel from beyond a hole that covers "
            "them; two images of each scene (n2n) are better"
        )
    if 1 / VARYING < ratio(noise) < VARYING:
        return "ssdn", "the noise is independent and equally strong everywhere, as it assumes of Gaussian noise"
    return "nb2nb", "the noise is independent and depends on the signal, and it assumes nothing of its strength"


def _keys(found: FolderNoise, method: str) -> Iterator[str]:
    # Without a clean image there is nothing to validate on, nor to score.
    yield from ("data.train=mine", "noise=none", f"method={method}", "data.val=[]", "data.test=[]")
    yield f"data.colour={'grey' if found.channels == 1 else 'rgb'}"
    yield from _options(found, method)


def _commands(folder: Path, method: str, keys: Sequence[str]) -> Iterator[str]:
    restore = ["denoise", "restore", str(folder), "-o", "restored", "--model"]
    if method in UNTRAINED:
        yield shlex.join([*restore, method])
    elif method:
        yield shlex.join(["denoise", "shard", "mine", "--from", str(folder), "--split", "train"])
        yield shlex.join(["denoise", "train", *keys, "--out", "models/mine"])
        yield shlex.join([*restore, "models/mine"])


def _options(found: FolderNoise, method: str) -> list[str]:
    if method == "n2n" and 2 * found.pairs <= found.samples:
        return ["data.pairs=next"]
    if method == "ssdn":
        return ["method.sigma=constant"]
    side = _hidden(max(reach(found.noise)))
    if method == "atbsn":
        return [f"method.hole={side}"]
    if method != "n2v":
        return []
    structure = {"rows": "h", "columns": "v"}[stripes(found.noise)]
    return [f"method.structure={structure}", f"method.structure_size={side}"]


def _hidden(reach: int) -> int:
    return min(max(3, 2 * reach + 1), LARGEST_HOLE)


def _correlated(noise: NoiseMeasurement) -> bool:
    return noise.neighbours > CORRELATED or bool(stripes(noise))


def _noisy(found: FolderNoise) -> bool:
    return found.noise.sigma() >= LITTLE


def _unfit(found: FolderNoise) -> Iterator[tuple[str, str]]:
    if not _noisy(found):
        return
    if _correlated(found.noise):
        yield ", ".join(INDEPENDENT), "take correlated noise for detail and keep it"
        yield (
            ", ".join(TOLD_SIGMA),
            "are told a level that is far too low, since it is estimated as if noise were white",
        )
    elif not 1 / VARYING < ratio(found.noise) < VARYING:
        yield ", ".join(TOLD_SIGMA), "are told one level for all of an image"


def _warnings(found: FolderNoise) -> Iterator[str]:
    if found.jpeg > JPEG:
        yield "the images show the blocks of JPEG, which has changed their noise; take raw files if you can"
    if found.saturated > SATURATED and _noisy(found):
        yield (
            f"{found.saturated:.1%} of the values lie at the ends of the range, where noise was cut off: its mean is "
            "not 0 there, and results will be too bright in black and too dark in white"
        )
    if found.noise.saturated_share > 0.02:
        yield "few parts are free of saturated values, so the level is measured too low"
