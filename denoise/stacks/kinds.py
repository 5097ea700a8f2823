"""Which files are stacks, which values they may hold, and the extras that read some of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from denoise.errors import UserError
from denoise.images.tiff import MAGIC as TIFF_MAGIC
from denoise.images.tiff import inspect_tiff
from denoise.stacks.value_range import TYPES

TIFF = (".tif", ".tiff")
MRC = (".mrc", ".mrcs", ".map", ".st", ".rec")
ZARR_FILES = (".zgroup", "zarr.json")  # of which a folder of Zarr has one
STACKS = (".npy", ".npz", *MRC)  # that are never read as images
IN_FOLDERS = (".npy", ".npz", ".mrc", ".mrcs", ".zarr")  # of stacks, names that hardly anything else has


def is_stack(path: Path) -> bool:
    """Return whether a file is opened as a stack: by its name, or a sound TIFF that is not one image of 8 or 16 bits.

    A broken TIFF is none: reading it as an image says what is wrong. A folder is a stack where it is one of Zarr.
    """
    if path.is_dir():
        return any((path / name).is_file() for name in ZARR_FILES)
    suffix = path.suffix.lower()
    return suffix in STACKS or (suffix in TIFF and _is_other_tiff(path))


def _is_other_tiff(path: Path) -> bool:
    """Return whether a file is a sound TIFF that is not one image of 8 or 16 bits."""
    try:
        with path.open("rb") as file:
            if file.read(4) not in TIFF_MAGIC:
                return False
            inspect_tiff(file, str(path))
    except UserError:
        return True
    except Exception:
        return False
    return False


def check_stack_target(source: Path, target: Path) -> None:
    """Raise UserError where the name of a restored stack is not that of a file of the same kind."""
    suffix = source.suffix.lower()
    kind = next((suffixes for suffixes in (TIFF, MRC) if suffix in suffixes), (suffix,))
    if target.suffix.lower() not in kind:
        raise UserError(
            f"cannot write {target}: {source} is a stack, which becomes a file of the same kind; choose {kind[0]}."
        )


def check_type(path: Path, dtype: "np.dtype[Any]") -> None:
    """Refuse values of a type that is not read."""
    if dtype.name not in TYPES:
        raise UserError(f"{path} holds values of the type {dtype.name}, expected {', '.join(TYPES)}; convert it first.")


@contextmanager
def extra(package: str, name: str, path: Path) -> Iterator[None]:
    """Turn a missing package of the block into a sentence that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"{path} is read with the package {package}, which is not installed: `pip install 'noise2x[{name}]'`."
        ) from None
