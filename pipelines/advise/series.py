"""Whether successive images of a folder are the frames of a burst or a series in which nothing moves."""

from collections.abc import Sequence
from itertools import pairwise

from denoise.noise_meter import measure_movement
from denoise.sharding.plan import Source
from pipelines.advise.images import NoisyImage, noisy_images

COMPARED = 4  # pairs of successive images
ALIKE, MOVED, FADED = 0.9, 0.25, 0.02  # correlation when blurred, pixels, share of the mean


def is_series(sources: Sequence[Source]) -> bool:
    """Return whether most of some successive images in folders show the same scene from the same place."""
    images = [NoisyImage(source) for source in sources]
    following = [(first, second) for first, second in pairwise(images) if first.folder == second.folder]
    if 2 * len(following) < len(images):
        return False
    chosen = following[:: -(-len(following) // COMPARED)]
    return 2 * sum(_unmoved(*pair) for pair in chosen) > len(chosen)


def _unmoved(first: NoisyImage, second: NoisyImage) -> bool:
    before, after = (image.middle() for image in noisy_images([first.source, second.source]))
    if before.shape != after.shape:
        return False
    movement = measure_movement(before, after)
    return movement.likeness > ALIKE and movement.distance < MOVED and abs(movement.brightness) < FADED
