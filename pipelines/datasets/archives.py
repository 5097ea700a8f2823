"""Read the files in tar archives, none of which is trusted."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from denoise.errors import UserError, first_line

LARGEST_IMAGE = 1 << 28  # bytes of one image in an archive


def tar_files(archive: Path | IO[bytes], name: str, limit: int) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield path and bytes of the files in a tar, one in memory at a time; tars inside it count as folders.

    Nothing is unpacked here.

    Args:
        archive: a path (compressed or not) or an open file.
        name: of the archive, for messages.
        limit: bytes that the members may have together.

    Raises:
        UserError: a member leads out of the folder (absolute, ..) or is a link or a device, there are more than
            ``limit`` bytes, or the archive is cut short or has a broken header in the middle, where tarfile would end
            without an error.
    """
    try:
        with _open_tar(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                    raise UserError(f"{name} is not safe to unpack: its member {member.name!r} is a link or leads out")
                limit -= member.size
                if limit < 0:
                    raise UserError(f"{name} holds more data than the set has: it is no copy of it, so use another one")
                stream = tar.extractfile(member)
                if stream is None:
                    continue
                if path.suffix == ".tar":
                    inner = tar_files(stream, f"{name}: {path}", limit + member.size)
                    yield from ((path.with_suffix("") / file, data) for file, data in inner)
                elif member.size > LARGEST_IMAGE:
                    raise UserError(f"{name} is not the expected archive: its member {path} has {member.size} bytes")
                else:
                    yield path, stream.read()
            _check_end(tar)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        reason = first_line(error).rstrip(":")
        raise UserError(f"{name} is damaged or no tar archive ({reason}): get a whole copy of it") from error


def _open_tar(archive: Path | IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(archive) if isinstance(archive, Path) else tarfile.open(fileobj=archive)


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that reading stopped at the blocks of zeros that end a tar; anything else is damage."""
    assert tar.fileobj is not None  # noqa: S101 - mypy: a tar that was just read has one
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it breaks off after {tar.offset} bytes")
