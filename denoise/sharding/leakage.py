"""The leakage check: refuses to train on test images and to score on training images, and warns of look-alikes.

It reads the lists of all samples, which takes minutes for a million images. What it finds depends on the digests of the
sets alone, so a ``ResultCache`` spares the second run on the same sets this time.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from denoise.data.shards import Shards
from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.fields import set_and_split
from denoise.files import json_line
from denoise.printable import printable
from denoise.sharding.fingerprints import MAX_DISTANCE, FingerprintIndex
from denoise.sharding.image_set import MAX_IMAGES, ImageSet
from denoise.sharding.result_cache import ResultCache

VERSION = 1  # of what is found in a set: raise it where the check or its fingerprints change, and nothing old is used
MAX_NAMED = 3  # pairs of similar images that a warning names


def refuse_overlap(
    train: Sequence[tuple[str, Shards]],
    test: Sequence[tuple[str, Shards]],
    allowed: Sequence[str],
    cache: ResultCache | None = None,
) -> None:
    """Refuse to train on images of a test set: images with the same grey levels, whatever their format or colour.

    Images that only look the same (resized or compressed once more) cause a warning on standard error.

    Args:
        train: the training sets, by name.
        test: the test sets, by name.
        allowed: names of test sets that are not compared (``is_allowed``).
        cache: remembers which sets share no image. That two share one is found anew every time.

    Raises:
        UserError: a shared image, unless its test set is ``allowed`` by name.
    """
    for name, shards in test:
        if is_allowed(name, allowed):
            continue
        index: FingerprintIndex | None = None
        for train_name, images in train:
            key = _key(images, shards)
            similar = _cached_similar(cache, key)
            if similar is None:
                index = index or FingerprintIndex.build(shards.fingerprints())
                similar = _compare(name, index, train_name, images)
                if cache:
                    cache.put(key, json_line([similar.count, similar.examples]).encode())
            _warn(name, train_name, similar)


def training_images(train: Sequence[Shards], cache: ResultCache | None = None) -> bytes:
    """Return the set of the training images, which a model keeps (``ImageSet.to_bytes``).

    It is empty where they are more than a set holds.
    """
    if sum(map(len, train)) > MAX_IMAGES:
        return b""
    key = f"training images {VERSION}: {' '.join(images.digest for images in train)}"
    found = cache.get(key) if cache else None
    if found is None:
        found = ImageSet.build(grey for images in train for _, grey, _ in images.fingerprints()).to_bytes()
        if cache:
            cache.put(key, found)
    return found


def refuse_trained_on(trained_on: ImageSet, test: Sequence[tuple[str, Shards]], allowed: Sequence[str]) -> None:
    """Refuse to score a model on images that it was trained on, whatever the name of their set was.

    Raises:
        UserError: such an image, unless its test set is ``allowed`` by name.
    """
    for name, shards in test:
        if is_allowed(name, allowed):
            continue
        rows = list(shards.fingerprints())
        known = trained_on.contains([grey for _, grey, _ in rows])
        if known.any():
            raise UserError(
                f"{known.sum()} images of the test set {name} are among the images that this model was trained on "
                f"(for example {rows[known.argmax()][0]}): scores on it would mean nothing; evaluate on another set, "
                f"or allow it by name with data.allow_overlap={plain_name(name)}."
            )


def is_allowed(name: str, allowed: Sequence[str]) -> bool:
    """Return whether a test set, SET or SET/SPLIT, may share images with the training sets: SET is ``allowed``."""
    return plain_name(name) in allowed


def plain_name(name: str) -> str:
    """Return SET of a test set's name, SET or SET/SPLIT: what ``data.allow_overlap`` names."""
    return set_and_split(name, "test")[0]


@dataclass(frozen=True)
class _Similar:
    """Images of a training set that look like images of a test set."""

    count: int
    examples: Sequence[Sequence[str]]  # the first ones: names of a training image and of a test image


def _key(train: Shards, test: Shards) -> str:
    return f"leakage {VERSION} {MAX_DISTANCE} {MAX_NAMED}: {train.digest} {test.digest}"


def _cached_similar(cache: ResultCache | None, key: str) -> _Similar | None:
    found = cache.get(key) if cache else None
    return _Similar(*parse_json(found)) if found is not None else None


def _compare(name: str, index: FingerprintIndex, train_name: str, images: Shards) -> _Similar:
    """Return what looks similar; UserError if an image is the same."""
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
            f"or allow it by name with data.allow_overlap={plain_name(name)}."
        )
    return _Similar(len(similar), similar[:MAX_NAMED])


def _warn(name: str, train_name: str, similar: _Similar) -> None:
    if similar.count:
        pairs = ", ".join(f"{image} ~ {other}" for image, other in similar.examples)
        print(
            f"warning: {similar.count} images of the training set {train_name} look like images of the test set "
            f"{name} ({printable(pairs)}); if they show the same photographs, scores on {name} are too good.",
            file=sys.stderr,
        )
