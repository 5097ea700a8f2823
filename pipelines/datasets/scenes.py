"""Samples from the names of image files: views of one scene (NAME_noisy, NAME_clean, ...) are one sample."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denoise.sharding.plan import Source

# End of a file's name -> view, for several images of one scene. PolyU has _real and _mean.
VIEW_SUFFIXES = {"_noisy": "noisy", "_noisy2": "noisy2", "_clean": "clean", "_real": "noisy", "_mean": "mean"}


def group_scenes(images: Sequence[Path]) -> "Iterator[Source]":
    """Yield the samples of one folder: single images, and the views of one scene together.

    Views belong together where the rest of their names is equal: with the same extension, or else in any and whatever
    the case. Where that leaves two files for one view, and where a name has no such end, images stay single.
    """
    from denoise.sharding.plan import Source

    single: list[Path] = []
    views: list[Path] = []
    for path in images:
        (views if view_of(path) else single).append(path)
    known = {path.name for path in single}  # the name of a scene that is an image, too, says nothing
    rest: list[Path] = []
    for name, group in _grouped(views, _exact_name):
        if name not in known and _is_scene(group):
            yield Source(name, _by_view(group))
        else:
            rest += group
    for _, group in _grouped(rest, _loose_name):
        if _is_scene(group) and not known & set(map(_exact_name, group)):
            first = min(group, key=lambda path: (view_of(path) != "noisy", path.name))
            yield Source(_exact_name(first), _by_view(group))
        else:
            single += group
    yield from (Source(path.name, {"clean": path}) for path in single)


def view_of(path: Path) -> str | None:
    """Return the view that the end of a file's name names, in any case; None where it names none."""
    suffix = _suffix(path)
    return VIEW_SUFFIXES[suffix] if suffix else None


def label(name: str) -> str:
    r"""Return the name of a sample as text: a byte that is no UTF-8 is written as ``\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _suffix(path: Path) -> str:
    stem = path.stem.lower()
    return next((suffix for suffix in VIEW_SUFFIXES if stem.endswith(suffix) and stem != suffix), "")


def _exact_name(path: Path) -> str:
    return f"{path.stem[: len(path.stem) - len(_suffix(path))]}{path.suffix}"


def _loose_name(path: Path) -> str:
    return unicodedata.normalize("NFC", Path(_exact_name(path)).stem).casefold()


def _grouped(paths: Iterable[Path], key: Callable[[Path], str]) -> list[tuple[str, list[Path]]]:
    groups = defaultdict[str, list[Path]](list)
    for path in paths:
        groups[key(path)].append(path)
    return list(groups.items())


def _is_scene(group: Sequence[Path]) -> bool:
    return len(group) > 1 and len(_by_view(group)) == len(group)


def _by_view(group: Sequence[Path]) -> dict[str, Path]:
    return {view: path for path in group if (view := view_of(path))}
