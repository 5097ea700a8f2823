"""Stacks in OME-Zarr (NGFF 0.4 and 0.5): a folder of chunks, read by the package zarr (the extra zarr).

The largest of an image's resolutions is read and written, with the metadata of the other folder but for the smaller
ones. A chunk that spans several planes is decoded for each of them.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from denoise.errors import UserError
from denoise.files import atomic_folder
from denoise.stacks.kinds import check_type, extra
from denoise.stacks.layout import make_layout
from denoise.stacks.stack import Sink, Stack

METADATA = (".zgroup", ".zattrs", ".zarray", "zarr.json")  # of a group or an array, formats 2 and 3 of Zarr


@contextmanager
def open_zarr(path: Path, axes: str | None, channels: str) -> Iterator[Stack]:
    """Open the image in a folder of OME-Zarr.

    Raises:
        UserError: it holds no image, or several.
    """
    with extra("zarr", "zarr", path):
        import zarr
    group = zarr.open_group(path, mode="r")
    image = _only_image(path, dict(group.attrs))
    level = str(image["datasets"][0]["path"])
    array: Any = group[level]
    check_type(path, array.dtype)
    names = "".join(str(axis["name"])[0] for axis in image["axes"])
    layout = make_layout(str(path), array.shape, axes or names, channels)

    @contextmanager
    def create(target: Path) -> Iterator[Sink]:
        with atomic_folder(target) as work:
            _copy_metadata(path, work, level)
            copy: Any = zarr.open_group(work, mode="r+")[level]
            yield copy

    others = {str(entry.name) for entry in path.iterdir() if entry.is_dir()} - {level.partition("/")[0]}
    remarks = (f"{path} holds more than its largest image, which a restored one does not have",) if others else ()
    yield Stack(path, layout, array.dtype.newbyteorder("="), array, create, range(len(layout)), remarks)


def _only_image(path: Path, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the metadata say of the one image of a group."""
    images = _images(attributes)
    if len(images) != 1:
        raise UserError(
            f"{path} holds {len(images) or 'no'} image{'s' * (len(images) > 1)} of OME-Zarr, expected one; give the "
            f"folder of an image in it, such as {path / '0'}."
        )
    image: Mapping[str, Any] = images[0]
    return image


def _images(attributes: Mapping[str, Any]) -> list[Any]:
    """Return the entries of images in the attributes of a group, of NGFF 0.5 (within ``ome``) or 0.4."""
    found = attributes.get("ome", attributes).get("multiscales", [])
    return found if isinstance(found, list) else []


def _copy_metadata(source: Path, target: Path, level: str) -> None:
    """Copy what says of a group and of one array in it what they are."""
    parts = level.split("/")
    for depth in range(len(parts) + 1):
        folder = Path(*parts[:depth])
        (target / folder).mkdir(parents=True, exist_ok=True)
        for name in METADATA:
            if (source / folder / name).is_file():
                shutil.copyfile(source / folder / name, target / folder / name)
    for name in (".zattrs", "zarr.json"):
        if (target / name).is_file():
            tree = json.loads((target / name).read_bytes())
            tree.pop("consolidated_metadata", None)  # of arrays that are not there any more
            for image in _images(tree.get("attributes", {}) if name == "zarr.json" else tree):
                image["datasets"] = image["datasets"][:1]
            (target / name).write_text(json.dumps(tree, indent=2), encoding="utf-8")
