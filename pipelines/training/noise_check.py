"""Warnings where a method takes for granted what real images, or their pairs, break."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import UserError
from pipelines.console import say
from pipelines.training.inputs import TrainingInputs, open_datasets

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from denoise.data.dataset import ShardedDataset

IMAGES = 8  # that are looked at, evenly spread
SIDE = 1024  # pixels, of the middle of a larger image


UNLIKE = 0.5  # correlation of two blurred images, below which they may show two scenes
MOVED = 0.25  # pixels
FADED = 0.02  # share of the mean brightness


def warn_of_noise(config: Config, inputs: TrainingInputs) -> None:
    """Say what of real images breaks what the method takes for granted of their noise, or of their pairs."""
    from denoise.methods import build_method
    from denoise.noise import parse_noise

    if config.noise != "none":
        return
    method = build_method(config.method.name, config.method.fields, parse_noise(config.noise))
    independent, pairs = method.assumes_independent_noise(), "noisy2" in method.views()
    if not (independent or pairs):
        return
    images = open_datasets(config, inputs.parts)["train"]
    numbers = range(0, len(images), -(-len(images) // IMAGES))
    found = (_correlated_noise if independent else _pairs)(config, images, numbers)
    for warning in found:
        say(f"{inputs.name}: warning: {warning}")


def _correlated_noise(config: Config, images: "ShardedDataset", numbers: Sequence[int]) -> Iterator[str]:
    """Yield a warning where the noise of neighbours is correlated, and neither too weak nor impossible to measure."""
    from denoise.data.samples import real_noisy
    from denoise.noise_meter import CORRELATED, LITTLE, measure_noise

    try:
        noise = measure_noise(len(numbers), lambda number: _middle(real_noisy(images, numbers[number])))
    except UserError:
        return
    if noise.sigma() >= LITTLE and noise.neighbours > CORRELATED:
        yield (
            f"the noise of neighbouring pixels is correlated ({noise.neighbours:.2f}, measured in {len(numbers)} "
            f"images), and {config.method.name} keeps such noise as if it were detail; see what `denoise advise "
            "FOLDER` says of your images."
        )


def _pairs(config: Config, images: "ShardedDataset", numbers: Sequence[int]) -> Iterator[str]:
    """Yield a warning for each way in which most pairs differ by more than their noise."""
    import numpy as np

    from denoise.data.samples import RealNoise
    from denoise.noise_meter import measure_movement

    samples = RealNoise(images, ("noisy", "noisy2"), from_next=config.data.pairs == "next")
    found = [
        measure_movement(*(_middle(np.asarray(image)) for image in samples[number].values())) for number in numbers
    ]
    distance = median(movement.distance for movement in found)
    likeness = median(movement.likeness for movement in found)
    change = median(abs(movement.brightness) for movement in found)
    of = f"the median of {len(found)} pairs"
    if likeness < UNLIKE:
        yield (
            f"the two images of a scene are hardly alike (correlation {likeness:.2f} when blurred, {of}): their noise "
            f"is very strong, or they show different scenes, from which {config.method.name} learns nothing of use."
        )
    elif distance > MOVED:
        yield (
            f"the second image of a scene lies {distance:.1f} pixels beside the first ({of}), and "
            f"{config.method.name} learns to blur by as much; align them first, or use a method for single images."
        )
    if change > FADED:
        yield (
            f"the second image of a scene is {100 * change:.0f} % brighter or darker than the first ({of}), and "
            f"{config.method.name} learns that change too; scale them to the same mean first."
        )


def _middle(pixels: "np.ndarray[Any, Any]") -> "Tensor":
    """Return the middle of an image (H, W, C) as (C, H, W) in [0, 1]."""
    from denoise.images.tensors import to_tensor

    top, left = (max(0, side - SIDE) // 2 for side in pixels.shape[:2])
    return to_tensor(pixels[top : top + SIDE, left : left + SIDE])
