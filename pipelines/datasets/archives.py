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
LARGEST_HEADER = 1 << 18  # bytes of a header that names a long path, which tarfile reads and parses as a whole
HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
# What tarfile and the decompressors raise for damage, and for numbers and headers that make no sense.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, ArithmeticError, ValueError)


class _HeaderError(Exception):
    """A header that no honest archive has; tarfile does not take it for the end of the archive."""


class _Member(tarfile.TarInfo):
    """A member whose headers are checked before they are read."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # what tarfile lets subclasses override
        if self.size < 0 or (self.type in HEADERS and self.size > LARGEST_HEADER):
            raise _HeaderError(f"a header says that it has {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def tar_files(archive: Path | IO[bytes], name: str, limit: int) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield path and bytes of the files in a tar, one in memory at a time; tars inside it count as folders.

    Nothing is unpacked here.

    Args:
        archive: a path (compressed or not) or an open file (not compressed).
        name: of the archive, for messages.
        limit: bytes that the members may have together, with the blocks of their headers.

    Raises:
        UserError: a member leads out of the folder (absolute, ..) or is a link or a device, there are more than
            ``limit`` bytes, or the archive is cut short or has a broken header in the middle, where tarfile would end
            without an error.
    """
    try:
        with _open_tar(archive) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise all that were read stay in memory
                path = _checked_path(member, name)
                limit -= tarfile.BLOCKSIZE + member.size
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
    except _HeaderError as error:
        raise UserError(f"{name} is no tar archive of images ({error}): get a whole copy of it") from error
    except RecursionError:
        raise UserError(
            f"{name} is no tar archive of images (it is nested too deeply): get a whole copy of it"
        ) from None
    except _DAMAGE as error:
        reason = first_line(error).rstrip(":")
        raise UserError(f"{name} is damaged or no tar archive ({reason}): get a whole copy of it") from error


def _open_tar(archive: Path | IO[bytes]) -> tarfile.TarFile:
    if isinstance(archive, Path):
        return tarfile.open(archive, tarinfo=_Member)
    return tarfile.open(fileobj=archive, mode="r:", tarinfo=_Member)


def _checked_path(member: tarfile.TarInfo, name: str) -> PurePosixPath:
    """Return the path of a member that is a plain file or a folder, within the archive's folder."""
    path = PurePosixPath(member.name)
    plain = (member.isreg() and not member.issparse()) or member.isdir()
    if path.is_absolute() or ".." in path.parts or "\0" in member.name or not plain:
        raise UserError(f"{name} is not safe to unpack: its member {member.name[:80]!r} is a link or leads out")
    if member.size < 0:
        raise _HeaderError(f"a header says that a file has {member.size} bytes")
    return path


def _check_end(tar: tarfile.TarFile) -> None:
    """Check that reading stopped at the blocks of zeros that end a tar; anything else is damage."""
    assert tar.fileobj is not None  # noqa: S101 - mypy: a tar that was just read has one
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it breaks off after {tar.offset} bytes")
