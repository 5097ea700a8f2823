"""The stage ``fetch``: a data set by name becomes picture files in ROOT/raw/SPLIT/NAME.

What arrives is kept, verified, in ROOT/downloads/NAME/SPLIT and linked from there, so raw folders may be deleted and
made again without the network. Pictures are byte for byte those of the source, under their names.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from denoise.errors import UserError
from pipelines.download import (
    NotThereError,
    alone,
    copy,
    download,
    download_all,
    is_valid,
    link,
    read_text,
    replaced,
    size_of,
    tar_files,
    write,
)
from pipelines.progress import progress
from pipelines.sets import DataSet, checksums, choose_splits, data_set, parse_checksums, sample_path

ARCHIVE_LIMIT = 1 << 30  # bytes in the archive of a small set
IMAGENET_LIMIT = 1 << 40
IMAGENETS: dict[str, dict[str, str]] = {"imagenet": {}, "imagenet_val": {"train": "val"}}  # our split -> theirs
ANY_SIDE = (1, 1 << 31)  # pixels
SUFFIXES = {".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
GET_IMAGENET = (
    "ImageNet cannot be downloaded without an account: register at https://image-net.org, get ILSVRC2012_img_train.tar "
    "or ILSVRC2012_img_val.tar, then run `denoise fetch imagenet --mirror PATH` with the tar or its folder"
)


def fetch(
    name: str,
    root: Path = Path("data"),
    *,
    splits: Sequence[str] | None = None,
    mirror: str | Path | None = None,
    min_side: int | None = None,
    max_side: int | None = None,
) -> list[Path]:
    """Bring a data set to ``root``/raw/SPLIT/NAME and return these folders, each complete and exact.

    What is already there and valid is not brought again; with everything in downloads, no network is used.

    Args:
        name: a data set of ``sets.SETS``.
        root: the data folder.
        splits: the splits to bring, None for all (of imagenet: all that the mirror has).
        mirror: a folder or an http(s) address laid out as docs/data.md says, used instead of the official address;
            for imagenet also a folder with train/ or val/, or ILSVRC2012_img_{train,val}.tar or its folder.
            ``samples`` needs none: its pictures are installed.
        min_side: of imagenet, keep pictures whose sides both have at least so many pixels (256 in Laine et al. 2019).
        max_side: ... at most so many pixels (512 in Laine et al. 2019).

    Raises:
        UserError: an unknown set or split, no connection, a wrong checksum, a mirror that is not there or is not whole.
    """
    known = data_set(name)
    chosen = choose_splits(known, splits)
    if (min_side or max_side) and name not in IMAGENETS:
        raise UserError(f"min_side and max_side choose among the pictures of imagenet: leave them out for {name}")
    try:
        if name not in IMAGENETS:
            return [_fetch_split(known, split, root, mirror) for split in chosen]
        sides = (min_side or ANY_SIDE[0], max_side or ANY_SIDE[1])
        return _fetch_imagenet(root, name, chosen, splits is not None, mirror, sides)
    except OSError as error:
        raise UserError(f"cannot bring {name} to {root} ({error}): check the disk and the rights on it") from error


# --- sets with pinned checksums ----------------------------------------------------------------------------------


def _fetch_split(known: DataSet, split: str, root: Path, mirror: str | Path | None) -> Path:
    raw, downloads = root / "raw" / split / known.name, root / "downloads" / known.name / split
    expected = checksums(known.name)[split]
    if _is_exact(raw, expected):
        return raw
    with alone(_lock(root, known.name)):
        missing = {file: digest for file, digest in expected.items() if not is_valid(downloads / file, digest)}
        if missing:
            _bring(known, split, missing, downloads, mirror)
        with replaced(raw) as fresh:
            for file in expected:
                link(downloads / file, fresh / file)
    return raw


def _is_exact(folder: Path, expected: dict[str, str]) -> bool:
    """Tell whether the folder holds the expected files, their bytes included, and nothing else."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return there == set(expected) and all(is_valid(folder / file, digest) for file, digest in expected.items())


def _bring(known: DataSet, split: str, missing: dict[str, str], downloads: Path, mirror: str | Path | None) -> None:
    """Bring the missing files (name -> sha256) of a split to the downloads, verified."""
    if known.name == "samples":
        _copy_all(known, split, missing, downloads, sample_path)
    elif mirror is None and known.archive:
        _bring_archive(known, split, missing, downloads, known.archive)
    elif mirror is None:
        _download_all(known, split, missing, downloads, str(known.address))
    elif (folder := _local(mirror)) is None:
        _bring_from_site(known, split, missing, downloads, str(mirror).rstrip("/"))
    else:
        _bring_from_folder(known, split, missing, downloads, folder)


def _bring_from_site(known: DataSet, split: str, missing: dict[str, str], downloads: Path, site: str) -> None:
    if known.archive:
        try:
            return _bring_archive(known, split, missing, downloads, f"{site}/{Path(known.archive).name}")
        except NotThereError:
            pass  # then the site has the pictures one by one
    _download_all(known, split, missing, downloads, f"{site}/{known.layout}")


def _bring_from_folder(known: DataSet, split: str, missing: dict[str, str], downloads: Path, folder: Path) -> None:
    archive = folder / Path(known.archive).name if known.archive and folder.is_dir() else folder
    if archive.is_file() and known.archive:
        return _unpack(known, split, missing, downloads, archive)

    def source(file: str) -> Path:
        path = folder / known.layout.format(split=split, file=file)
        if not path.is_file():
            raise UserError(f"the mirror {folder} has no {path.relative_to(folder)}: docs/data.md shows its layout")
        return path

    _copy_all(known, split, missing, downloads, source)


def _copy_all(
    known: DataSet, split: str, missing: dict[str, str], downloads: Path, source: Callable[[str], Path]
) -> None:
    with progress(f"fetch {known.name} {split}", len(missing)) as advance:
        for file, digest in missing.items():
            copy(source(file), downloads / file, digest)
            advance(1)


def _download_all(known: DataSet, split: str, missing: dict[str, str], downloads: Path, address: str) -> None:
    files = [
        (address.format(split=split, file=quote(file)), downloads / file, digest) for file, digest in missing.items()
    ]
    with progress(f"fetch {known.name} {split}", len(files)) as advance:
        download_all(files, advance)


def _bring_archive(known: DataSet, split: str, missing: dict[str, str], downloads: Path, address: str) -> None:
    """Download the archive of a set, once for all its splits, and take the missing files out of it."""
    archive = downloads.parent / address.rpartition("/")[2]
    if not archive.is_file():
        part = archive.with_name(archive.name + ".part")
        done = part.stat().st_size if part.exists() else 0
        with progress(f"fetch {archive.name}", size_of(address), "bytes", done) as advance:
            download(address, archive, advance=advance)
    try:
        _unpack(known, split, missing, downloads, archive)
    except UserError:
        archive.unlink()  # else every further call would find the same bad archive
        raise


def _unpack(known: DataSet, split: str, missing: dict[str, str], downloads: Path, archive: Path) -> None:
    """Take the missing files out of an archive, each verified; other members are left alone."""
    wanted = {known.layout.format(split=split, file=file): file for file in missing}
    with progress(f"unpack {archive.name} {split}", len(wanted)) as advance:
        for path, data in tar_files(archive, str(archive), ARCHIVE_LIMIT):
            if file := wanted.pop(str(path), None):
                write(downloads / file, data, missing[file], f"{path} in {archive}")
                advance(1)
    if wanted:
        raise UserError(f"{archive} lacks {len(wanted)} pictures, one is {min(wanted)}: get a whole copy of it")


# --- ImageNet: the user's own copy -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a split of ImageNet comes from.

    Attributes:
        state: a text that changes when the pictures do.
        count: how many there are, None where only reading them all tells.
        pictures: yields their names (with the class folder) and where they are, or their bytes.
    """

    state: str
    count: int | None
    pictures: Callable[[], Iterable[tuple[str, Path | bytes]]]


def _fetch_imagenet(
    root: Path, name: str, splits: Sequence[str], by_name: bool, mirror: str | Path | None, sides: tuple[int, int]
) -> list[Path]:
    folders = {split: root / "raw" / split / name for split in splits}
    if mirror is None:
        there = [raw for raw in folders.values() if _is_as_recorded(root, raw, {"sides": [*sides]})]
        if not there or (by_name and len(there) < len(splits)):
            raise UserError(GET_IMAGENET)
        return there
    theirs = {split: IMAGENETS[name].get(split, split) for split in splits}
    sources = {split: _imagenet_source(mirror, theirs[split], root) for split in splits}
    for split, source in sources.items():
        if source is None and (by_name or not any(sources.values())):
            raise UserError(
                f"{mirror} has no ImageNet {theirs[split]} pictures: "
                f"expected a folder {theirs[split]}/ or ILSVRC2012_img_{theirs[split]}.tar there, so check the path"
            )
    return [_fetch_imagenet_split(root, folders[split], source, sides) for split, source in sources.items() if source]


def _fetch_imagenet_split(root: Path, raw: Path, source: _Source, sides: tuple[int, int]) -> Path:
    wanted: dict[str, object] = {"source": source.state, "sides": [*sides]}
    if _is_as_recorded(root, raw, wanted):
        return raw
    kept = 0
    with alone(_lock(root, "imagenet")), replaced(raw) as fresh:
        with progress(f"fetch {raw.name} {raw.parent.name}", source.count) as advance:
            for name, picture in source.pictures():
                if _has_sides(picture, name, sides):
                    _put(picture, fresh / name)
                    kept += 1
                advance(1)
        if not kept:
            limits = "" if sides == ANY_SIDE else f" with sides of {sides[0]} to {sides[1]} pixels"
            raise UserError(
                f"there is no picture of {raw.name} {raw.parent.name}{limits}: check the mirror and the limits"
            )
        write(_record(root, raw), json.dumps(wanted | {"pictures": _listing(fresh)}).encode())
    return raw


def _record(root: Path, raw: Path) -> Path:
    return root / "downloads" / "imagenet" / f"{raw.name}-{raw.parent.name}.json"


def _is_as_recorded(root: Path, raw: Path, wanted: dict[str, object]) -> bool:
    """Tell whether a raw folder is untouched since it was made, and was made from what is ``wanted`` now."""
    try:
        record = json.loads(_record(root, raw).read_text(encoding="utf-8"))
        wanted = wanted | {"pictures": _listing(raw)}
        return all(record[key] == value for key, value in wanted.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _put(picture: Path | bytes, target: Path) -> None:
    if isinstance(picture, Path):
        link(picture, target, symbolic=True)  # 150 GB are not copied
    else:
        write(target, picture)


def _has_sides(picture: Path | bytes, name: str, sides: tuple[int, int]) -> bool:
    """Tell whether both sides are within the limits, from the header alone."""
    if sides == ANY_SIDE:
        return True
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture if isinstance(picture, Path) else BytesIO(picture)) as header:
            width, height = header.size
            return sides[0] <= min(width, height) and max(width, height) <= sides[1]
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is no picture, so its size is unknown: remove it from the mirror") from error


def _imagenet_source(mirror: str | Path, split: str, root: Path) -> _Source | None:
    """Find a split in a mirror, an ILSVRC2012 folder or a tar; None where there is none."""
    folder = _local(mirror)
    if folder is None:
        return _site_source(str(mirror).rstrip("/"), split, root)
    tar = f"ILSVRC2012_img_{split}.tar"
    if folder.is_file():
        return _tar_source(folder) if folder.name == tar else None
    sums = folder / "SHA256SUMS"
    if (folder / "imagenet" / split).is_dir() and sums.is_file():
        return _sums_source(folder, _lines(sums.read_text(encoding="utf-8"), str(sums), split), split)
    for pictures in (folder / "imagenet" / split, folder / split):
        if pictures.is_dir():
            return _folder_source(pictures)
    return _tar_source(folder / tar) if (folder / tar).is_file() else None


def _folder_source(folder: Path) -> _Source:
    names = [name for name in _names(folder) if Path(name).suffix.lower() in SUFFIXES and Path(name).name[0] != "."]
    return _Source(_listing(folder), len(names), lambda: ((name, folder / name) for name in names))


def _sums_source(mirror: Path, expected: dict[str, str], split: str) -> _Source:
    def pictures() -> Iterator[tuple[str, Path]]:
        for name, digest in expected.items():
            path = mirror / "imagenet" / split / name
            if not is_valid(path, digest):
                raise UserError(f"{path} is missing or not as SHA256SUMS of the mirror says: get a good copy of it")
            yield name, path

    return _Source(_digest(map(str, expected.items())), len(expected), pictures)


def _site_source(site: str, split: str, root: Path) -> _Source | None:
    folder = root / "downloads" / "imagenet"
    sums = folder / f"SHA256SUMS-{_digest([site])[:8]}"
    if not sums.is_file():
        try:
            write(sums, read_text(f"{site}/SHA256SUMS").encode())
        except NotThereError as error:
            raise UserError(f"the mirror {site} has no SHA256SUMS, which lists its pictures: add it there") from error
    expected = _lines(sums.read_text(encoding="utf-8"), f"{site}/SHA256SUMS", split)

    def pictures() -> Iterator[tuple[str, Path]]:
        missing = [
            (f"{site}/imagenet/{split}/{quote(name)}", folder / split / name, digest)
            for name, digest in expected.items()
            if not is_valid(folder / split / name, digest)
        ]
        if missing:
            with progress(f"download imagenet {split}", len(missing)) as advance:
                download_all(missing, advance)
        yield from ((name, folder / split / name) for name in expected)

    return _Source(_digest(map(str, expected.items())), len(expected), pictures) if expected else None


def _tar_source(tar: Path) -> _Source:
    def pictures() -> Iterator[tuple[str, bytes]]:
        return ((str(path), data) for path, data in tar_files(tar, str(tar), IMAGENET_LIMIT))

    state = tar.stat()
    return _Source(f"{tar.name} {state.st_size} {state.st_mtime_ns}", None, pictures)


def _lines(text: str, origin: str, split: str) -> dict[str, str]:
    """Return name -> sha256 of the lines of SHA256SUMS that belong to a split of ImageNet."""
    start = f"imagenet/{split}/"
    sums = parse_checksums(text, origin)
    return {path.removeprefix(start): digest for path, digest in sums.items() if path.startswith(start)}


# --- folders -----------------------------------------------------------------------------------------------------


def _local(mirror: str | Path) -> Path | None:
    """Return the path of a mirror, None for an address; a path that does not exist is a UserError."""
    address = urlsplit(str(mirror))
    if address.scheme in ("http", "https"):
        return None
    if "://" in str(mirror) and address.scheme != "file":
        raise UserError(f"the mirror {mirror} cannot be read: give a folder or an address that starts with http(s)://")
    path = Path(unquote(address.path) if address.scheme == "file" else mirror).expanduser()
    if not path.exists():
        raise UserError(f"the mirror {mirror} does not exist: give the path of a folder that holds the set")
    return path


def _lock(root: Path, name: str) -> Path:
    return root / "downloads" / f"{name}.lock"


def _names(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it, sorted."""
    below = (Path(base, file) for base, _, found in os.walk(folder, followlinks=True) for file in found)
    return sorted(path.relative_to(folder).as_posix() for path in below)


def _listing(folder: Path) -> str:
    """Sum up the names and sizes of all files below a folder."""
    return _digest(f"{name} {(folder / name).stat().st_size}" for name in _names(folder))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
