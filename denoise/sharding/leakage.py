"""Refuses to train on the images that a model will be scored on, and warns of those that look like them."""

import sys
from collections.abc import Sequence

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.sharding.fingerprints import FingerprintIndex

SHOWN = 3  # pairs of look-alikes that a warning names


def refuse_overlap(
    train: Sequence[tuple[str, Shards]], test: Sequence[tuple[str, Shards]], allowed: Sequence[str]
) -> None:
    """Refuse to train on images that are in a test set: the same grey levels, whatever the format or the colour.

    Images that only look the same, resized or compressed once more, are warned about on standard error.

    Raises:
        UserError: a shared image, unless its test set is ``allowed`` by name.
    """
    for name, shards in test:
        if name in allowed:
            continue
        known = FingerprintIndex.of(shards.fingerprints())
        for train_name, images in train:
            _compare(name, known, train_name, images)


def _compare(name: str, known: FingerprintIndex, train_name: str, images: Shards) -> None:
    same: list[tuple[str, str]] = []
    alike: list[tuple[str, str]] = []
    for number in range(len(images.entries)):  # shard by shard, so that memory stays that of one
        rows = list(images.fingerprints_of(number))
        found = [(image, known.same(grey)) for image, grey, _ in rows]
        same += [(image, other) for image, other in found if other is not None]
        alike += [(rows[place][0], other) for place, other in known.alike([look for _, _, look in rows])]
    if same:
        image, other = same[0]
        raise UserError(
            f"{len(same)} images of the test set {name} are in the training set {train_name} "
            f"(for example {other} = {image}): scores on it would mean nothing; train on another set, "
            f"or allow it by name with data.allow_overlap={name}."
        )
    if alike:
        pairs = ", ".join(f"{image} ~ {other}" for image, other in alike[:SHOWN])
        print(
            f"warning: {len(alike)} images of the training set {train_name} look like images of the test set "
            f"{name} ({pairs}); if they show the same photographs, scores on {name} are too good.",
            file=sys.stderr,
        )
