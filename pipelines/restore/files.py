"""Restore image files and folders of them: show progress, report broken images.

While an image is computed, the next one is read and the one before is written, each in a thread of its own. A stack is
restored in its turn, plane by plane.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.console import progress
from pipelines.restore.planning import FilePair, identity, plan
from pipelines.restore.stacks import StackJob, inspect_stack, restore_stack

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser
    from denoise.images.io import DecodedImage
    from denoise.stacks.options import StackOptions

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
    stack: StackJob | None = None


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
    stacks: "StackOptions | None" = None,
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
        stacks: how files of many planes, and of floats, are read; None: as they say themselves.

    Raises:
        UserError: from ``plan``; or an image is broken (``keep_going``: after all others) or cannot be written.
    """
    from denoise.tiling import restore_image, restore_plane

    restore = partial(restore_image, denoiser, level=level, tile=tile, overlap=overlap, device=device)
    restore_one = partial(restore_plane, denoiser, level=level, tile=tile, overlap=overlap, device=device)
    pairs = plan(inputs, output)
    images, failures = _inspect(pairs, denoiser, tile, overlap, keep_going, stacks)
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
                if image.stack is not None:
                    write = partial(restore_stack, image.stack, partial(restore_one, advance=advance), advance)
                    writer.write_stack(image, write, start)
                    continue
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

    def write_stack(self, image: _Image, restore: Callable[[], object], start: float) -> None:
        """Restore a stack, which writes itself, once the image before it is written.

        Raises:
            UserError: one of them cannot be written, or a plane cannot be read.
        """
        self.finish()
        self.results.append(self._written_by(restore, image, start))

    def finish(self) -> None:
        """Wait until all is written, or raise the UserError of what cannot be."""
        behind, self._behind = self._behind, None
        if behind is not None:
            self.results.append(behind.result())

    def _write(self, image: _Image, restored: "DecodedImage", start: float) -> Restored:
        from denoise.images.io import write_image

        return self._written_by(partial(write_image, image.target, restored), image, start)

    def _written_by(self, write: Callable[[], object], image: _Image, start: float) -> Restored:
        _refuse_second(image.source, image.target, self._written)
        _make_folder(image.target.parent)
        write()
        self._written[identity(image.target)] = image.source
        return Restored(image.source, image.target, time.perf_counter() - start)


def _refuse_second(source: Path, target: Path, written: dict[tuple[int, int], Path]) -> None:
    """Refuse to replace an output of this call: the file system may take two names for one, as without their case."""
    other = written.get(identity(target)) if target.exists() else None
    if other is not None:
        raise UserError(f"{other} and {source} would both become {target}; restore them into two folders.")


def _read_for(source: Path, target: Path) -> "DecodedImage":
    """Return the image of a file, checked to be one that the format of ``target`` can hold."""
    from denoise.images.io import check_target, read_image

    image = read_image(source)
    check_target(target, image)
    return image


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}.") from error


def _inspect(
    pairs: list[FilePair],
    denoiser: "Denoiser",
    tile: int | None,
    overlap: int | None,
    keep_going: bool,
    stacks: "StackOptions | None",
) -> tuple[list[_Image], list[str]]:
    """Return the images, as the heads of their files show them, and an error message for each broken one."""
    from denoise.images.io import image_size
    from denoise.stacks.kinds import is_stack
    from denoise.stacks.options import StackOptions
    from denoise.tiling import choose_tiles

    tiles = choose_tiles(denoiser, tile, overlap)
    images: list[_Image] = []
    failures = []
    for source, target in pairs:
        try:
            if is_stack(source):
                job = inspect_stack(source, target, denoiser, tiles, stacks or StackOptions(), keep_going)
                images.append(_Image(source, target, job.tiles, beside=False, stack=job))
                continue
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
