"""Fail a DVC stage whose dependencies or parameters were edited while it ran, or hold passwords.

DVC hashes a stage's dependencies when its command has ended. An edit in between would stand in dvc.lock as what made
the results, and `dvc status` would call them up to date (treeverse/dvc#11058). So each command compares, and fails.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from denoise.errors import UserError
from denoise.files import file_digest
from denoise.redaction import redacted

State = Mapping[str, object]


@contextmanager
def dependencies_unchanged() -> Iterator[None]:
    """Fail if a dependency or parameter of the surrounding DVC stage changes while the block runs.

    Outside of a stage it does nothing. Folders are compared by the names, sizes and times of their files: reading all
    data twice would take longer than many a stage.

    Raises:
        UserError: a file, a folder or a parameter changed, or a parameter holds a password, which dvc.lock would keep.
    """
    stage, pipeline = os.environ.get("DVC_STAGE"), Path("dvc.yaml")
    if not stage or not pipeline.is_file():
        yield
        return
    before = _state(stage, pipeline)
    parameters = {name: value for name, value in before.items() if name.startswith("params.yaml:")}
    if secret := [name for name, value in parameters.items() if redacted(value) != value]:
        raise UserError(
            f"{secret[0]} holds a password, which DVC would copy to dvc.lock; take it out of the address, to where "
            "docs/security.md says."
        )
    yield
    after = _state(stage, pipeline)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise UserError(
            f"{', '.join(changed)} changed while the stage {stage} ran: its results belong to no one version; run "
            "`dvc repro` again."
        )


def _state(stage: str, pipeline: Path) -> State:
    """Return a value to compare for each dependency and each parameter of a stage."""
    import yaml

    name, _, item = stage.rpartition(":")[2].partition("@")
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    definition = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"].get(name, {})
    variables = _variables(definition, item, values)
    definition = definition.get("do", definition)
    files, keys = (_filled(definition.get(section, []), variables) for section in ("deps", "params"))
    return {
        **{path: _content(Path(path)) for path in files},
        **{f"params.yaml:{key}": _value(values, key) for key in keys},
    }


def _variables(definition: Mapping[str, Any], item: str, values: Any) -> dict[str, str]:
    """Return what ``${item}`` of a ``foreach`` stands for, and ``${item.KEY}`` of a ``matrix``."""
    matrix = definition.get("matrix", {})
    lists: list[Any] = [_value(values, entry[2:-1]) if isinstance(entry, str) else entry for entry in matrix.values()]
    # DVC names a stage of a matrix by its values, joined with dashes.
    chosen = next((combination for combination in product(*lists) if "-".join(combination) == item), ())
    return {"${item}": item, **{f"${{item.{key}}}": value for key, value in zip(matrix, chosen, strict=False)}}


def _filled(entries: Iterable[object], variables: Mapping[str, str]) -> list[str]:
    texts = [str(entry) for entry in entries]
    for variable, value in variables.items():
        texts = [text.replace(variable, value) for text in texts]
    return texts


def _content(path: Path) -> object:
    if path.is_file():
        return file_digest(path)
    return sorted(
        (file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    )


def _value(tree: Any, key: str) -> object:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
