"""The stage ``fetch``: a data set by name becomes image files in ROOT/raw/SPLIT/NAME.

What arrives is kept, verified, in ROOT/downloads/NAME/SPLIT and linked from there, so raw folders may be deleted and
made again without the network. Images are byte for byte those of the source, under their names.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from denoise.errors import UserError
from pipelines.console import progress
from pipelines.datasets.archives import tar_files
from pipelines.datasets.catalog import DataSet, checksums, choose_splits, data_set, sample_path
from pipelines.datasets.imagenet import ANY_SIDE, IMAGENETS, fetch_imagenet
from pipelines.datasets.mirrors import local, lock
from pipelines.storage.download import NotFoundError, download, download_all, size_of
from pipelines.storage.placing import atomic_folder, copy, exclusive_lock, is_valid, link, write

ARCHIVE_LIMIT = 1 << 30  # bytes in the archive of a small set


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
            ``samples`` needs none: its images are installed.
        min_side: of imagenet, keep images whose sides both have at least so many pixels (256 in Laine et al. 2019).
        max_side: ... at most so many pixels (512 in Laine et al. 2019).

    Raises:
        UserError: an unknown set or split, no connection, a wrong checksum, a mirror that is not there or is not whole.
    """
    known = data_set(name)
    chosen = choose_splits(known, splits)
    if (min_side or max_side) and name not in IMAGENETS:
        raise UserError(f"min_side and max_side choose among the images of imagenet: leave them out for {name}")
    try:
        if name not in IMAGENETS:
            return [_fetch_split(known, split, root, mirror) for split in chosen]
        sides = (min_side or ANY_SIDE[0], max_side or ANY_SIDE[1])
        return fetch_imagenet(root, name, chosen, splits is not None, mirror, sides)
    except OSError as error:
        raise UserError(f"cannot bring {name} to {root} ({error}): check the disk and the rights on it") from error


def _fetch_split(known: DataSet, split: str, root: Path, mirror: str | Path | None) -> Path:
    raw, downloads = root / "raw" / split / known.name, root / "downloads" / known.name / split
    expected = checksums(known.name)[split]
    if _is_exact(raw, expected):
        return raw
    with exclusive_lock(lock(root, known.name)):
        missing = {file: digest for file, digest in expected.items() if not is_valid(downloads / file, digest)}
        if missing:
            _bring(known, split, missing, downloads, mirror)
        with atomic_folder(raw) as fresh:
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
    elif (folder := local(mirror)) is None:
        _bring_from_site(known, split, missing, downloads, str(mirror).rstrip("/"))
    else:
        _bring_from_folder(known, split, missing, downloads, folder)


def _bring_from_site(known: DataSet, split: str, missing: dict[str, str], downloads: Path, site: str) -> None:
    if known.archive:
        try:
            return _bring_archive(known, split, missing, downloads, f"{site}/{Path(known.archive).name}")
        except NotFoundError:
            pass  # then the site has the images one by one
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
        raise UserError(f"{archive} lacks {len(wanted)} images, one is {min(wanted)}: get a whole copy of it")
