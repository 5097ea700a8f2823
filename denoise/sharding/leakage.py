"""Refuses to train on the pictures that a model will be scored on, and warns of those that look like them."""

import sys
from collections.abc import Sequence

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.sharding.fingerprints import Known

SHOWN = 3  # pairs of look-alikes that a warning names


def refuse_overlap(
    train: Sequence[tuple[str, Shards]], test: Sequence[tuple[str, Shards]], allowed: Sequence[str]
) -> None:
    """Refuse to train on pictures that are in a test set: the same grey levels, whatever the format or the colour.

    Pictures that only look the same, resized or compressed once more, are warned about on standard error.

    Raises:
        UserError: a shared picture, unless its test set is ``allowed`` by name.
    """
    for name, shards in test:
        if name in allowed:
            continue
        known = Known.of(shards.prints())
        for train_name, pictures in train:
            _compare(name, known, train_name, pictures)


def _compare(name: str, known: Known, train_name: str, pictures: Shards) -> None:
    same: list[tuple[str, str]] = []
    alike: list[tuple[str, str]] = []
    for number in range(len(pictures.entries)):  # shard by shard, so that memory stays that of one
        rows = list(pictures.prints_of(number))
        found = [(picture, known.same(grey)) for picture, grey, _ in rows]
        same += [(picture, other) for picture, other in found if other is not None]
        alike += [(rows[place][0], other) for place, other in known.alike([look for _, _, look in rows])]
    if same:
        picture, other = same[0]
        raise UserError(
            f"{len(same)} pictures of the test set {name} are in the training set {train_name} "
            f"(for example {other} = {picture}): scores on it would mean nothing; train on another set, "
            f"or allow it by name with data.allow_overlap={name}."
        )
    if alike:
        pairs = ", ".join(f"{picture} ~ {other}" for picture, other in alike[:SHOWN])
        print(
            f"warning: {len(alike)} pictures of the training set {train_name} look like pictures of the test set "
            f"{name} ({pairs}); if they show the same photographs, scores on {name} are too good.",
            file=sys.stderr,
        )
