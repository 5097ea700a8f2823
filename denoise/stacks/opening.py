"""open_stack: one way to open every kind of stack."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from denoise.errors import UserError, first_line
from denoise.stacks.kinds import TIFF
from denoise.stacks.mrc import open_mrc
from denoise.stacks.npy import open_npy, open_npz
from denoise.stacks.ome_zarr import open_zarr
from denoise.stacks.stack import Stack
from denoise.stacks.tiff import open_tiff

OPENERS = {".npy": open_npy, ".npz": open_npz, **dict.fromkeys(TIFF, open_tiff)}


@contextmanager
def open_stack(path: Path, axes: str | None = None, channels: str = "each") -> Iterator[Stack]:
    """Open a file of planes; nothing is read of it but what says where they lie.

    Args:
        path: TIFF, BigTIFF, OME-TIFF or ImageJ's; .npy, .npz; MRC; a folder of OME-Zarr.
        axes: a letter for each side, instead of what the file says.
        channels: as for ``make_layout``.

    Raises:
        UserError: it is no such file, holds what is not read, or its axes do not fit.
    """
    opener = open_zarr if path.is_dir() else OPENERS.get(path.suffix.lower(), open_mrc)
    with ExitStack() as resources:
        with _explained(path):
            stack = resources.enter_context(opener(path, axes, channels))
        yield stack


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what readers raise about a file, of broken bytes nearly anything, into a sentence that names it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}.") from error
    except Exception as error:
        raise UserError(f"{path} cannot be opened as a stack: {first_line(error)}.") from error
