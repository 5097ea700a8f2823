"""JSON documents that lie: every value of a document replaced by others, left out, or put under many brackets."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from denoise.errors import UserError

HUGE = 10**400
OTHERS = [
    None,
    True,
    -1,
    1 << 63,
    HUGE,
    1.5,
    float("nan"),
    float("-inf"),
    "",
    "x" * 5000,
    "\0",
    [],
    {},
    [[]],
    {"a": {}},
]
NO_JSON = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"7",
    b"[]",
    b"{}",
    b"[{}]",
    b'"x"',
    b"[" * 100_000,
    b'{"a":' * 900,
    b"9" * 9000,
]


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the values of a document are, the whole of it left out; of a list the first is enough."""
    if place:
        yield place
    for key in tree if isinstance(tree, dict) else range(min(1, len(tree))) if isinstance(tree, list) else ():
        yield from places(tree[key], (*place, key))


def mutated(tree: Any, *more: Any) -> Iterator[tuple[str, bytes]]:
    """Yield a name and the bytes of each mutation of a document; ``more`` are other values to put in every place."""
    yield from ((repr(text[:20]), text) for text in NO_JSON)
    for place in places(tree):
        for value in [*OTHERS, *more, "left out"]:
            changed = copy.deepcopy(tree)
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            if value == "left out":
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            yield f"{place} = {str(value)[:20]}", json.dumps(changed).encode()


def sentence_of(name: str, read: Callable[[], object]) -> str:
    """Return the one sentence with which ``read`` refuses a mutation, "" where it reads it; fail for anything else."""
    try:
        read()
    except UserError as error:
        message = str(error)
    except BaseException as error:
        pytest.fail(f"{name}: {type(error).__name__} {error}")
    else:
        message = ""
    assert "\n" not in message, name
    assert len(message) < 1000, name
    return message


class Victim:
    """A file of the user's, to be found untouched."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "thesis.txt"
        self.path.write_text("ten years")

    def names(self) -> list[str]:
        """Return paths that lead to it: the absolute one, and one that climbs from any folder."""
        return [str(self.path), str(Path(*[".."] * 12, str(self.path)[1:]))]

    def is_there(self) -> bool:
        """Return whether the file is as it was."""
        return self.path.read_text() == "ten years"
