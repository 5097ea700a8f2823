"""Fetch ImageNet from the user's own copy: a folder, a mirror, or the tars of ILSVRC2012."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import atomic_folder, exclusive_lock, has_digest, link_or_copy, write_bytes
from pipelines.console import progress
from pipelines.datasets.archives import tar_files
from pipelines.datasets.catalog import parse_checksums
from pipelines.datasets.layout import fetch_lock, mirror_path, raw_folder, raw_work_folder
from pipelines.storage.base import NotFoundError
from pipelines.storage.http import download_all, read_text

IMAGENET_LIMIT = 1 << 40
LARGEST_SUMS = 1 << 28  # bytes of SHA256SUMS, which has a line for each of 1.3 million images
IMAGENETS: dict[str, dict[str, str]] = {"imagenet": {}, "imagenet_val": {"train": "val"}}  # name -> our split -> theirs
ANY_SIDE = (1, 1 << 31)  # pixels
SUFFIXES = {".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
GET_IMAGENET = (
    "ImageNet cannot be downloaded without an account: register at https://image-net.org, get ILSVRC2012_img_train.tar "
    "or ILSVRC2012_img_val.tar, then run `denoise fetch imagenet --mirror PATH` with the tar or its folder"
)


@dataclass(frozen=True)
class _Source:
    """Where a split of ImageNet comes from.

    Attributes:
        state: a text that changes when the images do.
        count: how many there are, None if that takes reading them all.
        images: yields their names (with the class folder) and their paths, or their bytes.
    """

    state: str
    count: int | None
    images: Callable[[], Iterable[tuple[str, Path | bytes]]]


def fetch_imagenet(
    root: Path, name: str, splits: Sequence[str], by_name: bool, mirror: str | Path | None, sides: tuple[int, int]
) -> list[Path]:
    """Fetch splits of ImageNet, as ``fetch`` does; ``by_name``: each split must exist, as the user has named it."""
    folders = {split: raw_folder(root, split, name) for split in splits}
    if mirror is None:
        unchanged = [raw for raw in folders.values() if _matches_record(root, raw, {"sides": [*sides]})]
        if not unchanged or (by_name and len(unchanged) < len(splits)):
            raise UserError(GET_IMAGENET)
        return unchanged
    theirs = {split: IMAGENETS[name].get(split, split) for split in splits}
    sources = {split: _imagenet_source(mirror, theirs[split], root) for split in splits}
    for split, source in sources.items():
        if source is None and (by_name or not any(sources.values())):
            raise UserError(
                f"{mirror} has no ImageNet {theirs[split]} images: "
                f"expected a folder {theirs[split]}/ or ILSVRC2012_img_{theirs[split]}.tar there, so check the path"
            )
    return [_fetch_imagenet_split(root, folders[split], source, sides) for split, source in sources.items() if source]


def _fetch_imagenet_split(root: Path, raw: Path, source: _Source, sides: tuple[int, int]) -> Path:
    wanted: dict[str, object] = {"source": source.state, "sides": [*sides]}
    if _matches_record(root, raw, wanted):
        return raw
    count = 0
    with exclusive_lock(fetch_lock(root, "imagenet")), atomic_folder(raw, raw_work_folder(raw)) as work:
        with progress(f"fetch {raw.name} {raw.parent.name}", source.count) as advance:
            for name, image in source.images():
                if _has_sides(image, name, sides):
                    _add_image(image, work / name)
                    count += 1
                advance(1)
        if not count:
            limits = "" if sides == ANY_SIDE else f" with sides of {sides[0]} to {sides[1]} pixels"
            raise UserError(
                f"there is no image of {raw.name} {raw.parent.name}{limits}: check the mirror and the limits"
            )
        write_bytes(_record_path(root, raw), json.dumps(wanted | {"pictures": _listing(work)}).encode())
    return raw


def _record_path(root: Path, raw: Path) -> Path:
    return root / "downloads" / "imagenet" / f"{raw.name}-{raw.parent.name}.json"


def _matches_record(root: Path, raw: Path, wanted: dict[str, object]) -> bool:
    """Return whether a raw folder is unchanged since it was made, and was made from what is ``wanted`` now."""
    try:
        record = parse_json(_record_path(root, raw).read_bytes())
        wanted = wanted | {"pictures": _listing(raw)}
        return all(record[key] == value for key, value in wanted.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _add_image(image: Path | bytes, target: Path) -> None:
    if isinstance(image, Path):
        link_or_copy(image, target, symbolic=True)  # 150 GB are not copied
    else:
        write_bytes(target, image)


def _has_sides(image: Path | bytes, name: str, sides: tuple[int, int]) -> bool:
    """Return whether both sides are within the limits, from the header alone."""
    if sides == ANY_SIDE:
        return True
    from PIL import Image

    try:
        with Image.open(image if isinstance(image, Path) else BytesIO(image)) as header:
            width, height = header.size
    except Exception as error:  # Pillow's readers raise whatever comes
        raise UserError(f"{name} is no image, so its size is unknown: remove it from the mirror") from error
    return sides[0] <= min(width, height) and max(width, height) <= sides[1]


def _imagenet_source(mirror: str | Path, split: str, root: Path) -> _Source | None:
    """Return the source of a split in a mirror, an ILSVRC2012 folder or a tar; None where there is none."""
    folder = mirror_path(mirror)
    if folder is None:
        return _site_source(str(mirror).rstrip("/"), split, root)
    tar = f"ILSVRC2012_img_{split}.tar"
    if folder.is_file():
        return _tar_source(folder) if folder.name == tar else None
    sums = folder / "SHA256SUMS"
    if (folder / "imagenet" / split).is_dir() and sums.is_file():
        return _sums_source(folder, _split_checksums(sums, str(sums), split), split)
    for images in (folder / "imagenet" / split, folder / split):
        if images.is_dir():
            return _folder_source(images)
    return _tar_source(folder / tar) if (folder / tar).is_file() else None


def _folder_source(folder: Path) -> _Source:
    names = [
        name for name in _file_names(folder) if Path(name).suffix.lower() in SUFFIXES and Path(name).name[0] != "."
    ]
    return _Source(_listing(folder), len(names), lambda: ((name, folder / name) for name in names))


def _sums_source(mirror: Path, expected: dict[str, str], split: str) -> _Source:
    def images() -> Iterator[tuple[str, Path]]:
        for name, digest in expected.items():
            path = mirror / "imagenet" / split / name
            if not has_digest(path, digest):
                raise UserError(f"{path} is missing or not as SHA256SUMS of the mirror says: get a good copy of it")
            yield name, path

    return _Source(_digest(map(str, expected.items())), len(expected), images)


def _site_source(site: str, split: str, root: Path) -> _Source | None:
    folder = root / "downloads" / "imagenet"
    sums = folder / f"SHA256SUMS-{_digest([site])[:8]}"
    if not sums.is_file():
        try:
            text = read_text(f"{site}/SHA256SUMS", LARGEST_SUMS)
            parse_checksums(text, f"{site}/SHA256SUMS")  # a list that is none is not kept
            write_bytes(sums, text.encode())
        except NotFoundError as error:
            raise UserError(f"the mirror {site} has no SHA256SUMS, which lists its images: add it there") from error
    expected = _split_checksums(sums, f"{site}/SHA256SUMS", split)

    def images() -> Iterator[tuple[str, Path]]:
        missing = [
            (f"{site}/imagenet/{split}/{quote(name)}", folder / split / name, digest)
            for name, digest in expected.items()
            if not has_digest(folder / split / name, digest)
        ]
        if missing:
            with progress(f"download imagenet {split}", len(missing)) as advance:
                download_all(missing, advance)
        yield from ((name, folder / split / name) for name in expected)

    return _Source(_digest(map(str, expected.items())), len(expected), images) if expected else None


def _tar_source(tar: Path) -> _Source:
    def images() -> Iterator[tuple[str, bytes]]:
        return ((str(path), data) for path, data in tar_files(tar, str(tar), IMAGENET_LIMIT))

    state = tar.stat()
    return _Source(f"{tar.name} {state.st_size} {state.st_mtime_ns}", None, images)


def _split_checksums(file: Path, origin: str, split: str) -> dict[str, str]:
    """Return name -> sha256 of a split of ImageNet, from SHA256SUMS.

    Raises:
        UserError: it is no list of checksums; ``origin`` names it in the message.
    """
    if (size := file.stat().st_size) > LARGEST_SUMS:
        raise UserError(f"{origin} is no list of checksums: it has {size} bytes, more than the {LARGEST_SUMS} expected")
    try:
        sums = parse_checksums(file.read_text(encoding="utf-8"), origin)
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is no list of checksums: it is not text in UTF-8 ({error.reason})") from None
    start = f"imagenet/{split}/"
    return {path.removeprefix(start): digest for path, digest in sums.items() if path.startswith(start)}


def _file_names(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, sorted."""
    paths: list[Path] = []
    for base, folders, files in os.walk(folder, followlinks=True):
        here = Path(os.path.realpath(base))  # not Path.resolve, which raises for a link to itself
        folders[:] = [name for name in folders if not here.is_relative_to(os.path.realpath(Path(base, name)))]  # back
        paths += [Path(base, file) for file in files]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _listing(folder: Path) -> str:
    """Return a hash of the names and sizes of all files below a folder."""
    return _digest(f"{name} {(folder / name).stat().st_size}" for name in _file_names(folder))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
