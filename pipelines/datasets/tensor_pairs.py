"""The two files of EPFL's course EE-559, train_data.pkl and val_data.pkl: pairs of tensors that torch.save wrote.

A pickle can run any program when it is read. Torch's reader for weights builds tensors only, and refuses all else.
"""

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UsageError, UserError
from pipelines.datasets.made_images import MadeSample, shard_made

if TYPE_CHECKING:
    from torch import Tensor

FILES = {"train": "train_data.pkl", "val": "val_data.pkl"}
SECOND = {"train": "noisy2", "val": "clean", "test": "clean"}  # what the second tensor holds; the first is noisy
EXPECTED = "expected two uint8 tensors of one shape N x C x H x W, with C 1 or 3; get a good copy of the file"


def pair_files(source: Path, split: str | None) -> dict[str, Path]:
    """Return the tensor files in a folder by their split; none where it holds no such file.

    Args:
        source: the folder, or one file.
        split: the only one that is wanted; of one file, what it becomes, which its name may say.

    Raises:
        UsageError: a file whose split nothing says, or a folder without the file of the wanted split.
    """
    if source.is_file():
        named = next((name for name, file in FILES.items() if file == source.name), None)
        if (chosen := split or named) is None:
            raise UsageError(f"say what the images of {source} become: --split train (noisy pairs), val or test.")
        return {chosen: source}
    files = {name: path for name, file in FILES.items() if (path := source / file).is_file()}
    if not files or split is None:
        return files
    if split not in files:
        held = " and ".join(f"{path.name} ({name})" for name, path in files.items())
        raise UsageError(f"{source} holds {held}, and nothing for --split {split}; choose what is there.")
    return {split: files[split]}


def shard_pairs(name: str, split: str, root: Path, file: Path, shard_mb: int = 256) -> Path:
    """Write the pairs of a tensor file as the shards of a set, and return their folder.

    The first tensor is ``noisy``; the second is ``noisy2`` in a training set, where nothing is clean, and ``clean`` in
    others. A sample is named by its position in the tensors.

    Raises:
        UserError: the file does not hold exactly two such tensors.
    """
    noisy, second = read_pair(file)
    return shard_made(name, split, root, _samples(noisy, second, SECOND[split]), len(noisy), shard_mb)


def read_pair(file: Path) -> "tuple[Tensor, Tensor]":
    """Return the two tensors of a file, uint8 (N, C, H, W); they are read from the disk when they are used.

    Raises:
        UserError: the file holds anything else; nothing in it is run.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about a pickle that it then refuses
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None
    except Exception:  # bytes that are no pair of tensors make the reader raise nearly anything
        raise UserError(
            f"{file} holds something else than tensors that torch.save wrote, so it was not read, and nothing in it "
            f"was run: {EXPECTED}."
        ) from None
    if not _is_pair(content):
        raise UserError(f"{file} holds {_described(content)}: {EXPECTED}.")
    noisy, second = content
    if noisy.numel() > file.stat().st_size:  # strides may make much of few bytes
        raise UserError(f"{file} speaks of {len(noisy)} images, which its bytes cannot hold: {EXPECTED}.")
    return noisy, second


def _is_pair(content: object) -> bool:
    import torch

    if not isinstance(content, tuple | list) or len(content) != 2:
        return False
    if not all(type(part) is torch.Tensor and part.layout == torch.strided for part in content):
        return False
    noisy, second = content
    return (
        noisy.dtype == second.dtype == torch.uint8
        and noisy.dim() == 4
        and noisy.shape == second.shape
        and noisy.numel() > 0
        and noisy.shape[1] in (1, 3)
    )


def _described(content: object) -> str:
    """Return in words what a file holds."""
    if isinstance(content, tuple | list):
        return f"{len(content)} things ({', '.join(map(_described, content[:4]))}{', ...' if len(content) > 4 else ''})"
    shape: Any = getattr(content, "shape", None)
    if shape is None:
        return f"a {type(content).__name__}"
    return f"a {str(getattr(content, 'dtype', '')).removeprefix('torch.')} tensor {'x'.join(map(str, shape))}"


def _samples(noisy: "Tensor", second: "Tensor", view: str) -> Iterator[MadeSample]:
    for index in range(len(noisy)):
        first, other = (part[index].permute(1, 2, 0).contiguous().numpy() for part in (noisy, second))
        yield MadeSample(f"{index:05d}.png", {"noisy": first, view: other})
