"""What to do about a data set that is not there: fetch it, shard it from a folder, or spell it right."""

import shlex
from collections.abc import Iterable

from denoise.errors import nearest
from pipelines.datasets.catalog import SETS, checksums

COURSE_SETS = {  # made of files that a course hands out
    "ee559": "its files train_data.pkl and val_data.pkl are those of EPFL's course EE-559 (deep learning): with them, "
    "`denoise shard ee559 --from FOLDER`"
}


def similar_set(name: str, present: Iterable[str] = ()) -> str:
    """Return " (did you mean NAME?)" where a name is a slip of a known set's, or of one that is ``present``."""
    return "" if name in SETS else nearest(name, {*SETS, *COURSE_SETS, *present} - {name})


def how_to_make(name: str, split: str | None, present: Iterable[str] = ()) -> str:
    """Return what to do about a set that is not there: the second half of a sentence, without the full stop.

    Args:
        name: the set.
        split: the one that is missing, None for all of them.
        present: sets that are there, besides those that can be fetched: the name may be a slip of one.
    """
    if name in COURSE_SETS:
        return COURSE_SETS[name]
    own = f"denoise shard {shlex.quote(name)} --from FOLDER" + (f" --split {split}" if split else "")
    if name not in SETS:
        hint = similar_set(name, present)
        return f"no set of that name can be fetched{hint}; make it of your own images with `{own}`"
    splits = SETS[name].splits
    if split is not None and split not in splits:
        return f"{name} has {' and '.join(splits)} only: name another set"
    mirror = "" if any(checksums(name).values()) else " --mirror PATH"  # a copy that the user brings
    return f"make it with `denoise fetch {name}{mirror} && denoise shard {name}`"
