"""Where restored files go: source and target of each, checked before any work."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from denoise.errors import UserError
from denoise.files import fitting_name

FilePair = tuple[Path, Path]  # source, target


def plan(inputs: Sequence[Path], output: Path) -> list[FilePair]:
    """Return (source, target) of each image, in the order of work; nothing is written.

    One file in and an ``output`` with an extension: that file. Otherwise ``output`` is a folder, which gets the names
    of the files and the layout of the folders; an image of a format that is only read (GIF, PPM) becomes a PNG, a stack
    a file of its own kind. In folders, hidden files and what lies in ``output`` are left out.

    Raises:
        UserError: an input is missing, two inputs would become the same output or an output an input, or the output
            cannot be written.
    """
    from denoise.images.io import check_target
    from denoise.stacks.kinds import check_stack_target, is_stack

    if not inputs:
        raise UserError("nothing to restore: give an image file or a folder of images.")
    if len(inputs) == 1 and _is_one(inputs[0]) and output.suffix and (is_stack(output) or not output.is_dir()):
        if is_stack(inputs[0]):
            check_stack_target(inputs[0], output)
        else:
            check_target(output)
        pairs = [(inputs[0], output)]
    else:
        pairs = list(dict.fromkeys(pair for path in inputs for pair in _pairs_of(path, output)))
        _check_is_folder(output, len(pairs))
    _check_targets(pairs)
    _check_writable(pairs[0][1].parent if len(pairs) == 1 else output)
    return pairs


def _is_one(path: Path) -> bool:
    """Return whether a path is a file, or the folder of one stack."""
    from denoise.stacks.kinds import is_stack

    return path.is_file() or (path.is_dir() and is_stack(path))


def _pairs_of(path: Path, output: Path) -> Iterator[FilePair]:
    """Yield source and target of each image of one input, files of a folder in sorted order."""
    from denoise.images.io import READABLE
    from denoise.stacks.kinds import IN_FOLDERS

    readable = (*READABLE, *IN_FOLDERS)
    if _is_one(path):
        yield path, output / _target_name(Path(path.name))
        return
    if not path.is_dir():
        problem = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise UserError(f"{path} {problem}; give an image file or a folder of images.")
    output_folder = Path(os.path.realpath(output))  # not Path.resolve, which raises for a link to itself
    count = 0
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inner.parts)
        if hidden or file.suffix.lower() not in readable or not _is_one(file):
            continue
        earlier = output_folder in Path(os.path.realpath(file)).parents  # a result of an earlier call
        if earlier and output_folder != path.resolve():
            continue
        count += 1
        yield file, output / _target_name(inner)
    if not count:
        raise UserError(f"{path} holds no image ({', '.join(readable)}); give a folder that does.")


def _target_name(name: Path) -> Path:
    from denoise.images.io import READABLE, WRITABLE
    from denoise.stacks.kinds import IN_FOLDERS, STACKS

    suffix = name.suffix.lower()
    if suffix in (*WRITABLE, *STACKS, *IN_FOLDERS):
        return name
    return name.with_suffix(".png") if suffix in READABLE else name.with_name(fitting_name(name.name, ".png"))


def _check_is_folder(output: Path, count: int) -> None:
    from denoise.images.io import READABLE

    if output.is_file() or (output.suffix.lower() in READABLE and not output.is_dir()):
        raise UserError(f"{output} is no folder, expected one for {count} images; give the name of a folder.")


def _check_targets(pairs: list[FilePair]) -> None:
    sources = {identity(source): source for source, _ in pairs}
    source_of: dict[Path, Path] = {}
    for source, target in pairs:
        other = source_of.setdefault(target, source)
        if other != source:
            raise UserError(f"{other} and {source} would both become {target}; restore them into two folders.")
        if target.exists() and identity(target) in sources:
            raise UserError(f"{target} is itself an input ({sources[identity(target)]}); give another output.")


def identity(path: Path) -> tuple[int, int]:
    """Return what is equal for two names of the same file: the device and the inode."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written into, without making it."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write into {folder}: {existing} is no folder that may be written; give another output."
        )
