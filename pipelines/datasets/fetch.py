"""The stage ``fetch``: copy or download a data set to ROOT/raw/SPLIT/NAME.

Verified files stay in ROOT/downloads/NAME/SPLIT and are linked from there, so raw folders may be deleted and made again
without the network. Images are byte for byte those of the source, under their names.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from denoise.errors import UserError
from denoise.files import atomic_folder, exclusive_lock, has_digest, link_or_copy, remove, write_bytes
from pipelines.console import progress
from pipelines.datasets.archives import tar_files
from pipelines.datasets.catalog import DataSet, checksums, choose_splits, data_set, sample_path
from pipelines.datasets.imagenet import ANY_SIDE, IMAGENETS, fetch_imagenet
from pipelines.datasets.layout import fetch_lock, mirror_path, raw_folder, raw_work_folder
from pipelines.storage.base import NotFoundError, wrong_checksum
from pipelines.storage.http import LARGEST_IMAGE, download, download_all, size_of

ARCHIVE_LIMIT = 1 << 28  # bytes of the archive of a small set, and of what is in it


def fetch(
    name: str,
    root: Path = Path("data"),
    *,
    splits: Sequence[str] | None = None,
    mirror: str | Path | None = None,
    min_side: int | None = None,
    max_side: int | None = None,
) -> list[Path]:
    """Copy or download a data set to ``root``/raw/SPLIT/NAME and return these folders, each complete and exact.

    Files that exist and are valid are not fetched again; with everything in downloads, no network is used.

    Args:
        name: a data set of ``catalog.SETS``.
        root: the data folder.
        splits: the splits to fetch, None for all (of imagenet: all that the mirror has).
        mirror: a folder or an http(s) address laid out as docs/data.md says, used instead of the official address;
            for imagenet also a folder with train/ or val/, or ILSVRC2012_img_{train,val}.tar or its folder.
            ``samples`` needs none: its images are installed.
        min_side: of imagenet, keep images whose sides both have at least this many pixels (256 in Laine et al. 2019).
        max_side: ... at most this many pixels (512 in Laine et al. 2019).

    Raises:
        UserError: an unknown set or split, no connection, a wrong checksum, a mirror that is missing or lacks images.
    """
    dataset = data_set(name)
    chosen_splits = choose_splits(dataset, splits)
    if (min_side or max_side) and name not in IMAGENETS:
        raise UserError(f"min_side and max_side choose among the images of imagenet: leave them out for {name}")
    try:
        if name not in IMAGENETS:
            return [_fetch_split(dataset, split, root, mirror) for split in chosen_splits]
        sides = (min_side or ANY_SIDE[0], max_side or ANY_SIDE[1])
        return fetch_imagenet(root, name, chosen_splits, splits is not None, mirror, sides)
    except OSError as error:
        raise UserError(f"cannot fetch {name} to {root} ({error}): check the disk and the rights on it") from error


def _fetch_split(dataset: DataSet, split: str, root: Path, mirror: str | Path | None) -> Path:
    raw, downloads = raw_folder(root, split, dataset.name), root / "downloads" / dataset.name / split
    expected = checksums(dataset.name)[split]
    if _is_exact(raw, expected):
        return raw
    with exclusive_lock(fetch_lock(root, dataset.name)):
        missing = {file: digest for file, digest in expected.items() if not has_digest(downloads / file, digest)}
        if missing:
            _fetch_files(dataset, split, missing, downloads, mirror)
        with atomic_folder(raw, raw_work_folder(raw)) as work:
            for file in expected:
                link_or_copy(downloads / file, work / file)
    return raw


def _is_exact(folder: Path, expected: dict[str, str]) -> bool:
    """Return whether the folder holds exactly the expected files, with the expected bytes."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return names == set(expected) and all(has_digest(folder / file, digest) for file, digest in expected.items())


def _fetch_files(
    dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, mirror: str | Path | None
) -> None:
    """Copy or download the missing files (name -> sha256) of a split, each verified."""
    if dataset.name == "samples":
        _copy_all(dataset, split, missing, downloads, sample_path)
    elif mirror is None and dataset.archive:
        _fetch_archive(dataset, split, missing, downloads, dataset.archive)
    elif mirror is None:
        _download_all(dataset, split, missing, downloads, str(dataset.address))
    elif (folder := mirror_path(mirror)) is None:
        _fetch_from_site(dataset, split, missing, downloads, str(mirror).rstrip("/"))
    else:
        _fetch_from_folder(dataset, split, missing, downloads, folder)


def _fetch_from_site(dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, site: str) -> None:
    if dataset.archive:
        try:
            return _fetch_archive(dataset, split, missing, downloads, f"{site}/{Path(dataset.archive).name}")
        except NotFoundError:
            pass  # then the site has the images one by one
    _download_all(dataset, split, missing, downloads, f"{site}/{dataset.layout}")


def _fetch_from_folder(dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, folder: Path) -> None:
    archive = folder / Path(dataset.archive).name if dataset.archive and folder.is_dir() else folder
    if archive.is_file() and dataset.archive:
        return _unpack(dataset, split, missing, downloads, archive)

    def source(file: str) -> Path:
        path = folder / dataset.layout.format(split=split, file=file)
        if not path.is_file():
            raise UserError(f"the mirror {folder} has no {path.relative_to(folder)}: docs/data.md shows its layout")
        return path

    _copy_all(dataset, split, missing, downloads, source)


def _copy_all(
    dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, source: Callable[[str], Path]
) -> None:
    with progress(f"fetch {dataset.name} {split}", len(missing)) as advance:
        for file, digest in missing.items():
            path = source(file)
            if (size := path.stat().st_size) > LARGEST_IMAGE:
                raise UserError(
                    f"{path} has {size} bytes, so it is not the image of {dataset.name}: get a good copy of it"
                )
            _write_verified(downloads / file, path.read_bytes(), digest, str(path))
            advance(1)


def _download_all(dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, address: str) -> None:
    files = [
        (address.format(split=split, file=quote(file)), downloads / file, digest) for file, digest in missing.items()
    ]
    with progress(f"fetch {dataset.name} {split}", len(files)) as advance:
        download_all(files, advance)


def _fetch_archive(dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, address: str) -> None:
    """Download the archive of a set, once for all its splits, and extract the missing files."""
    archive = downloads.parent / address.rpartition("/")[2]
    if not archive.is_file():
        part = archive.with_name(archive.name + ".part")
        done = part.stat().st_size if part.exists() else 0
        with progress(f"fetch {archive.name}", size_of(address), "bytes", done) as advance:
            download(address, archive, advance=advance, limit=ARCHIVE_LIMIT)
    try:
        _unpack(dataset, split, missing, downloads, archive)
    except UserError:
        remove(archive, downloads.parent)  # otherwise every later call would find the same bad archive
        raise


def _unpack(dataset: DataSet, split: str, missing: dict[str, str], downloads: Path, archive: Path) -> None:
    """Extract the missing files from an archive, each verified; other members are ignored."""
    wanted = {dataset.layout.format(split=split, file=file): file for file in missing}
    with progress(f"unpack {archive.name} {split}", len(wanted)) as advance:
        for path, data in tar_files(archive, str(archive), ARCHIVE_LIMIT):
            if file := wanted.pop(str(path), None):
                _write_verified(downloads / file, data, missing[file], f"{path} in {archive}")
                advance(1)
    if wanted:
        raise UserError(f"{archive} lacks {len(wanted)} images, one is {min(wanted)}: get a whole copy of it")


def _write_verified(target: Path, data: bytes, sha256: str, source: str) -> None:
    """Write a file after checking its bytes; ``source`` says in the message where they come from."""
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise wrong_checksum(source, sha256, actual)
    write_bytes(target, data)
