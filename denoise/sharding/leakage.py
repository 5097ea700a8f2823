"""The leakage check: refuses to train on test images, and warns of training images that look like test images."""

import sys
from collections.abc import Sequence

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.sharding.fingerprints import FingerprintIndex

MAX_NAMED = 3  # pairs of similar images that a warning names


def refuse_overlap(
    train: Sequence[tuple[str, Shards]], test: Sequence[tuple[str, Shards]], allowed: Sequence[str]
) -> None:
    """Refuse to train on images of a test set: images with the same grey levels, whatever their format or colour.

    Images that only look the same (resized or compressed once more) cause a warning on standard error.

    Raises:
        UserError: a shared image, unless its test set is ``allowed`` by name.
    """
    for name, shards in test:
        if name in allowed:
            continue
        index = FingerprintIndex.build(shards.fingerprints())
        for train_name, images in train:
            _compare(name, index, train_name, images)


def _compare(name: str, index: FingerprintIndex, train_name: str, images: Shards) -> None:
    identical: list[tuple[str, str]] = []  # training image, test image
    similar: list[tuple[str, str]] = []
    for number in range(len(images.entries)):  # shard by shard, so that one is in memory at a time
        rows = list(images.fingerprints_of(number))
        matches = [(image, index.find_identical(grey)) for image, grey, _ in rows]
        identical += [(image, other) for image, other in matches if other is not None]
        close = index.find_similar([perceptual for _, _, perceptual in rows])
        similar += [(rows[row][0], other) for row, other in close]
    if identical:
        image, other = identical[0]
        raise UserError(
            f"{len(identical)} images of the test set {name} are in the training set {train_name} "
            f"(for example {other} = {image}): scores on it would mean nothing; train on another set, "
            f"or allow it by name with data.allow_overlap={name}."
        )
    if similar:
        pairs = ", ".join(f"{image} ~ {other}" for image, other in similar[:MAX_NAMED])
        print(
            f"warning: {len(similar)} images of the training set {train_name} look like images of the test set "
            f"{name} ({pairs}); if they show the same photographs, scores on {name} are too good.",
            file=sys.stderr,
        )
