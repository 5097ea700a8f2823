"""A warning where a method takes for granted what the noise of real images breaks."""

from typing import TYPE_CHECKING

from denoise.config import Config
from denoise.errors import UserError
from pipelines.console import say
from pipelines.training.inputs import TrainingInputs, open_datasets

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = 8  # that are looked at, evenly spread
SIDE = 1024  # pixels, of the middle of a larger image


def warn_of_correlated_noise(config: Config, inputs: TrainingInputs) -> None:
    """Say so where a method that assumes independent noise is about to learn from real images whose noise is not.

    Nothing is said of noise that cannot be measured, or is too weak to be told from texture.
    """
    from denoise.data.samples import real_noisy
    from denoise.images.tensors import to_tensor
    from denoise.methods import build_method
    from denoise.noise import parse_noise
    from denoise.noise_meter import CORRELATED, LITTLE, measure_noise

    method = config.method
    if config.noise != "none":
        return
    if not build_method(method.name, method.fields, parse_noise(config.noise)).assumes_independent_noise():
        return
    images = open_datasets(config, inputs.parts)["train"]
    numbers = range(0, len(images), -(-len(images) // IMAGES))

    def load(number: int) -> "Tensor":
        pixels = real_noisy(images, numbers[number])
        top, left = (max(0, side - SIDE) // 2 for side in pixels.shape[:2])
        return to_tensor(pixels[top : top + SIDE, left : left + SIDE])

    try:
        found = measure_noise(len(numbers), load)
    except UserError:
        return
    if found.sigma() >= LITTLE and found.neighbours > CORRELATED:
        say(
            f"{inputs.name}: warning: the noise of neighbouring pixels is correlated ({found.neighbours:.2f}, measured "
            f"in {len(numbers)} images), and {method.name} keeps such noise as if it were detail; see what `denoise "
            "advise FOLDER` says of your images."
        )
