"""The leakage check: refuses to train on test images and to score on training images, and warns of look-alikes."""

import sys
from collections.abc import Sequence

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.printable import printable
from denoise.sharding.fingerprints import FingerprintIndex
from denoise.sharding.image_set import MAX_IMAGES, ImageSet

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


def training_images(train: Sequence[Shards]) -> ImageSet | None:
    """Return the set of the training images, which a model keeps; None where they are more than a set holds."""
    if sum(map(len, train)) > MAX_IMAGES:
        return None
    return ImageSet.build(grey for images in train for _, grey, _ in images.fingerprints())


def refuse_trained_on(trained_on: ImageSet, test: Sequence[tuple[str, Shards]], allowed: Sequence[str]) -> None:
    """Refuse to score a model on images that it was trained on, whatever the name of their set was.

    Raises:
        UserError: such an image, unless its test set is ``allowed`` by name.
    """
    for name, shards in test:
        if name in allowed:
            continue
        rows = list(shards.fingerprints())
        known = trained_on.contains([grey for _, grey, _ in rows])
        if known.any():
            raise UserError(
                f"{known.sum()} images of the test set {name} are among the images that this model was trained on "
                f"(for example {rows[known.argmax()][0]}): scores on it would mean nothing; evaluate on another set, "
                f"or allow it by name with data.allow_overlap={name}."
            )


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
            f"{name} ({printable(pairs)}); if they show the same photographs, scores on {name} are too good.",
            file=sys.stderr,
        )
