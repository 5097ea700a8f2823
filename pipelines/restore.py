"""Restore image files and folders of them: what goes where, progress, broken images."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.console import progress

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser

Job = tuple[Path, Path]  # source, target


@dataclass(frozen=True)
class Restored:
    """One restored image: where it came from, where it is, how long it took in seconds."""

    source: Path
    target: Path
    seconds: float


def restore_files(
    inputs: Sequence[Path],
    output: Path,
    denoiser: "Denoiser",
    level: float | None = None,
    *,
    tile: int = 512,
    overlap: int = 64,
    device: str = "cpu",
    keep_going: bool = False,
) -> list[Restored]:
    """Restore image files and folders, which are searched for images, into ``output``.

    One file in and an ``output`` with an extension: that file. Otherwise ``output`` is a folder, which gets the names
    of the files and the layout of the folders; an image of a format that is only read (GIF, PPM) becomes a PNG.
    No input is ever overwritten; an older output is.

    Args:
        inputs: files and folders; in folders hidden files and what lies in ``output`` are left out.
        output: file or folder.
        denoiser: from ``load_denoiser``, on ``device``.
        level: of the noise in its own unit, or None: what the denoiser was trained for, or an estimate.
        tile: side of a tile in pixels.
        overlap: overlap of neighbouring tiles in pixels.
        device: torch device of the denoiser.
        keep_going: restore the other images where one is broken, and name the broken ones at the end.

    Raises:
        UserError: an input is missing or broken (even with ``keep_going``, but then after all others are restored),
            two inputs would become the same output or an output an input, or the output cannot be written.
    """
    from denoise.images.io import check_target, read_image, write_image
    from denoise.tiling import restore_image

    jobs = plan(inputs, output)
    tiles, failures = _count_tiles(jobs, denoiser.multiple, tile, overlap, keep_going)
    results = []
    with progress("restore", sum(tiles.values()), "tiles") as advance:
        for source, target in jobs:
            if source not in tiles:
                continue
            start = time.perf_counter()
            try:
                image = read_image(source)
                check_target(target, image)
            except UserError as error:
                failures.append(_failed(error, keep_going))
                advance(tiles[source], note=f"{source.name} is broken")
                continue
            advance(0, note=source.name)
            restored = restore_image(denoiser, image, level, tile=tile, overlap=overlap, device=device, advance=advance)
            _make_folder(target.parent)
            write_image(target, restored)
            results.append(Restored(source, target, time.perf_counter() - start))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(jobs)} images could not be restored, {len(results)} are in {output}: "
            + " ".join(failures)
        )
    return results


def plan(inputs: Sequence[Path], output: Path) -> list[Job]:
    """Return which file becomes which, in the order of work; raise UserError before anything is done."""
    from denoise.images.io import check_target

    if not inputs:
        raise UserError("nothing to restore: give an image file or a folder of images.")
    if len(inputs) == 1 and inputs[0].is_file() and output.suffix and not output.is_dir():
        check_target(output)
        jobs = [(inputs[0], output)]
    else:
        jobs = list(dict.fromkeys(job for path in inputs for job in _jobs_of(path, output)))
        _check_is_folder(output, len(jobs))
    _check_targets(jobs)
    _check_writable(jobs[0][1].parent if len(jobs) == 1 else output)
    return jobs


def _jobs_of(path: Path, output: Path) -> Iterator[Job]:
    """Yield the jobs of one input, files of a folder in sorted order."""
    from denoise.images.io import READS

    if path.is_file():
        yield path, output / _target_name(Path(path.name))
        return
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give an image file or a folder of images.")
    ours = output.resolve()
    found = 0
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inner.parts)
        if hidden or file.suffix.lower() not in READS or not file.is_file():
            continue
        if ours != path.resolve() and ours in file.resolve().parents:  # what an earlier call made
            continue
        found += 1
        yield file, output / _target_name(inner)
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(READS)}); give a folder that does.")


def _target_name(name: Path) -> Path:
    from denoise.images.io import READS, WRITES

    suffix = name.suffix.lower()
    if suffix in WRITES:
        return name
    return name.with_suffix(".png") if suffix in READS else name.with_name(name.name + ".png")


def _check_is_folder(output: Path, count: int) -> None:
    from denoise.images.io import READS

    if output.is_file() or (output.suffix.lower() in READS and not output.is_dir()):
        raise UserError(f"{output} is no folder, expected one for {count} images; give the name of a folder.")


def _check_targets(jobs: list[Job]) -> None:
    sources = {_identity(source): source for source, _ in jobs}
    made_of: dict[Path, Path] = {}
    for source, target in jobs:
        other = made_of.setdefault(target, source)
        if other != source:
            raise UserError(f"{other} and {source} would both become {target}; restore them into two folders.")
        if target.exists() and _identity(target) in sources:
            raise UserError(f"{target} is itself an input ({sources[_identity(target)]}); give another output.")


def _identity(path: Path) -> tuple[int, int]:
    """Return what two names of one file have in common."""
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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}.") from error


def _count_tiles(
    jobs: list[Job], multiple: int, tile: int, overlap: int, keep_going: bool
) -> tuple[dict[Path, int], list[str]]:
    """Return the number of tiles of each image, and what is wrong with the others."""
    from denoise.images.io import image_size
    from denoise.tiling import count_tiles

    tiles: dict[Path, int] = {}
    failures = []
    for source, _ in jobs:
        try:
            height, width = image_size(source)
        except UserError as error:
            failures.append(_failed(error, keep_going))
            continue
        tiles[source] = count_tiles(height, width, multiple, tile, overlap)
    return tiles, failures


def _failed(error: UserError, keep_going: bool) -> str:
    if not keep_going:
        raise error
    return str(error)
