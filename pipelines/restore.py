"""Restore image files and folders of them: choose the output files, show progress, report broken images.

While an image is computed, the next one is read and the one before is written, each in a thread of its own.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from denoise.files import fitting_name
from pipelines.console import progress

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser
    from denoise.images.io import DecodedImage

FilePair = tuple[Path, Path]  # source, target

# Of an image held beside the one that is computed. With Pillow's copy of it an 8-bit image takes 7 bytes a pixel, so
# the one read ahead and the one being written add 230 MB at most. A larger image is read and written in its turn.
PIXELS_BESIDE = 16_000_000


@dataclass(frozen=True)
class Restored:
    """One restored image: where it came from, where it is, and the seconds from its turn until it was written."""

    source: Path
    target: Path
    seconds: float


@dataclass(frozen=True)
class _Image:
    """An image to restore: its files, its number of tiles, and whether it may be held beside the one computed."""

    source: Path
    target: Path
    tiles: int
    beside: bool


def restore_files(
    inputs: Sequence[Path],
    output: Path,
    denoiser: "Denoiser",
    level: float | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    device: str = "cpu",
    keep_going: bool = False,
) -> list[Restored]:
    """Restore image files and folders of images into ``output`` as ``plan`` says; an older output is overwritten.

    Args:
        inputs: files and folders.
        output: a file or a folder.
        denoiser: from ``load_denoiser``, on ``device``.
        level: of the noise in its own unit; None: what the denoiser was trained for, or an estimate.
        tile, overlap: largest side of a tile and least overlap of neighbours, in pixels, as for ``choose_tiles``.
        device: torch device of the denoiser.
        keep_going: restore the other images where one is broken, and name the broken ones at the end.

    Raises:
        UserError: from ``plan``; or an image is broken (``keep_going``: after all others) or cannot be written.
    """
    from denoise.tiling import restore_image

    restore = partial(restore_image, denoiser, level=level, tile=tile, overlap=overlap, device=device)
    pairs = plan(inputs, output)
    images, failures = _inspect(pairs, denoiser, tile, overlap, keep_going)
    total = sum(image.tiles for image in images)
    with (
        progress("restore", total, "tiles") as advance,
        ThreadPoolExecutor(1, "read") as reading,
        ThreadPoolExecutor(1, "write") as writing,  # both are waited for, also after an error or Ctrl-C
    ):
        writer = _Writer(writing)
        for image, read in _read_ahead(images, reading):
            start = time.perf_counter()
            try:
                decoded = read()
            except UserError as error:
                writer.finish()
                failures.append(_message(error, keep_going))
                advance(image.tiles, note=f"{image.source.name} is broken")
                continue
            advance(0, note=image.source.name)
            writer.write(image, restore(decoded, advance=advance), start)
        writer.finish()
    if failures:
        counts = f"{len(failures)} of {len(pairs)} images could not be restored, {len(writer.results)} are in {output}"
        raise UserError(f"{counts}: {' '.join(failures)}")
    return writer.results


def _read_ahead(images: list[_Image], thread: Executor) -> Iterator[tuple[_Image, Callable[[], "DecodedImage"]]]:
    """Yield each image with the function that returns its pixels, while the thread reads the next one."""
    ahead: list[tuple[_Image, Callable[[], DecodedImage]]] = []  # at most the image in turn and the next one
    for image in images:
        read = partial(_read_for, image.source, image.target)
        ahead.append((image, thread.submit(read).result if image.beside else read))
        if len(ahead) > 1:
            yield ahead.pop(0)
    yield from ahead


class _Writer:
    """Writes images in their order, each in the thread while the next one is computed."""

    def __init__(self, thread: Executor) -> None:
        self.results: list[Restored] = []
        self._thread = thread
        self._behind: Future[Restored] | None = None  # the image that is being written
        self._written: dict[tuple[int, int], Path] = {}  # identity of each output -> its source

    def write(self, image: _Image, restored: "DecodedImage", start: float) -> None:
        """Write an image whose turn came at ``start``, once the one before is written.

        Raises:
            UserError: the one before, or this one, cannot be written.
        """
        self.finish()
        if image.beside:
            self._behind = self._thread.submit(self._write, image, restored, start)
        else:
            self.results.append(self._write(image, restored, start))

    def finish(self) -> None:
        """Wait until all is written, or raise the UserError of what cannot be."""
        behind, self._behind = self._behind, None
        if behind is not None:
            self.results.append(behind.result())

    def _write(self, image: _Image, restored: "DecodedImage", start: float) -> Restored:
        _refuse_second(image.source, image.target, self._written)
        _write(image.target, restored)
        self._written[_identity(image.target)] = image.source
        return Restored(image.source, image.target, time.perf_counter() - start)


def plan(inputs: Sequence[Path], output: Path) -> list[FilePair]:
    """Return (source, target) of each image, in the order of work; nothing is written.

    One file in and an ``output`` with an extension: that file. Otherwise ``output`` is a folder, which gets the names
    of the files and the layout of the folders; an image of a format that is only read (GIF, PPM) becomes a PNG. In
    folders, hidden files and what lies in ``output`` are left out.

    Raises:
        UserError: an input is missing, two inputs would become the same output or an output an input, or the output
            cannot be written.
    """
    from denoise.images.io import check_target

    if not inputs:
        raise UserError("nothing to restore: give an image file or a folder of images.")
    if len(inputs) == 1 and inputs[0].is_file() and output.suffix and not output.is_dir():
        check_target(output)
        pairs = [(inputs[0], output)]
    else:
        pairs = list(dict.fromkeys(pair for path in inputs for pair in _pairs_of(path, output)))
        _check_is_folder(output, len(pairs))
    _check_targets(pairs)
    _check_writable(pairs[0][1].parent if len(pairs) == 1 else output)
    return pairs


def _pairs_of(path: Path, output: Path) -> Iterator[FilePair]:
    """Yield source and target of each image of one input, files of a folder in sorted order."""
    from denoise.images.io import READABLE

    if path.is_file():
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
        if hidden or file.suffix.lower() not in READABLE or not file.is_file():
            continue
        earlier = output_folder in Path(os.path.realpath(file)).parents  # a result of an earlier call
        if earlier and output_folder != path.resolve():
            continue
        count += 1
        yield file, output / _target_name(inner)
    if not count:
        raise UserError(f"{path} holds no image ({', '.join(READABLE)}); give a folder that does.")


def _target_name(name: Path) -> Path:
    from denoise.images.io import READABLE, WRITABLE

    suffix = name.suffix.lower()
    if suffix in WRITABLE:
        return name
    return name.with_suffix(".png") if suffix in READABLE else name.with_name(fitting_name(name.name, ".png"))


def _check_is_folder(output: Path, count: int) -> None:
    from denoise.images.io import READABLE

    if output.is_file() or (output.suffix.lower() in READABLE and not output.is_dir()):
        raise UserError(f"{output} is no folder, expected one for {count} images; give the name of a folder.")


def _check_targets(pairs: list[FilePair]) -> None:
    sources = {_identity(source): source for source, _ in pairs}
    source_of: dict[Path, Path] = {}
    for source, target in pairs:
        other = source_of.setdefault(target, source)
        if other != source:
            raise UserError(f"{other} and {source} would both become {target}; restore them into two folders.")
        if target.exists() and _identity(target) in sources:
            raise UserError(f"{target} is itself an input ({sources[_identity(target)]}); give another output.")


def _refuse_second(source: Path, target: Path, written: dict[tuple[int, int], Path]) -> None:
    """Refuse to replace an output of this call: the file system may take two names for one, as without their case."""
    other = written.get(_identity(target)) if target.exists() else None
    if other is not None:
        raise UserError(f"{other} and {source} would both become {target}; restore them into two folders.")


def _identity(path: Path) -> tuple[int, int]:
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


def _read_for(source: Path, target: Path) -> "DecodedImage":
    """Return the image of a file, checked to be one that the format of ``target`` can hold."""
    from denoise.images.io import check_target, read_image

    image = read_image(source)
    check_target(target, image)
    return image


def _write(target: Path, image: "DecodedImage") -> None:
    from denoise.images.io import write_image

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target.parent}: {error.strerror}.") from error
    write_image(target, image)


def _inspect(
    pairs: list[FilePair], denoiser: "Denoiser", tile: int | None, overlap: int | None, keep_going: bool
) -> tuple[list[_Image], list[str]]:
    """Return the images, as the heads of their files show them, and an error message for each broken one."""
    from denoise.images.io import image_size
    from denoise.tiling import choose_tiles

    tiles = choose_tiles(denoiser, tile, overlap)
    images: list[_Image] = []
    failures = []
    for source, target in pairs:
        try:
            height, width = image_size(source)
        except UserError as error:
            failures.append(_message(error, keep_going))
            continue
        images.append(_Image(source, target, tiles.count(height, width), height * width <= PIXELS_BESIDE))
    return images, failures


def _message(error: UserError, keep_going: bool) -> str:
    """Return the message of an error that is reported at the end, or raise the error."""
    if not keep_going:
        raise error
    return str(error)
