"""Tars that lead out, are cut, damaged, too large or no tars."""

import gzip
import hashlib
import io
import random
import tarfile
import tracemalloc

import pytest

from denoise.errors import UserError
from pipelines.datasets.archives import tar_files

BODY = random.Random(1).randbytes(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


def pack(path, members, mode="w"):
    """Write a tar of members: a name, its bytes, and where it is no file its type."""
    with tarfile.open(path, mode) as tar:
        for name, content, *kind in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if kind:
                member.type, member.linkname = kind[0], "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return path


def read(path, limit=1 << 30):
    return {str(name): data for name, data in tar_files(path, path.name, limit)}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_files_of_a_tar_are_read_also_from_tars_inside(tmp_path, mode):
    inner = pack(tmp_path / "inner", [("x.JPEG", b"x"), ("y.JPEG", BODY)]).read_bytes()
    members = [("folder", b"", tarfile.DIRTYPE), ("./folder/a.jpg", b"a"), ("n01.tar", inner), ("n02.tar", inner)]
    assert read(pack(tmp_path / "outer", members, mode)) == {
        "folder/a.jpg": b"a",
        "n01/x.JPEG": b"x",
        "n01/y.JPEG": BODY,
        "n02/x.JPEG": b"x",
        "n02/y.JPEG": BODY,
    }


@pytest.mark.parametrize(
    "member",
    [
        ("../outside", b"x"),
        ("a/../../outside", b"x"),
        ("/etc/outside", b"x"),
        ("link", b"", tarfile.SYMTYPE),
        ("link", b"", tarfile.LNKTYPE),
        ("device", b"", tarfile.CHRTYPE),
        ("pipe", b"", tarfile.FIFOTYPE),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_member_that_leads_out_is_refused(tmp_path, member, nested):
    path = pack(tmp_path / "bad.tar", [("good", b"x"), member])
    if nested:
        path = pack(tmp_path / "outer.tar", [("bad.tar", path.read_bytes())])
    with pytest.raises(UserError, match="not safe to unpack"):
        read(path)


@pytest.mark.parametrize("cut", [512, 1024, 3 * 512, 3 * 512 + 100, 100])
@pytest.mark.parametrize("nested", [False, True])
def test_a_tar_that_is_cut_is_refused_even_between_members(tmp_path, cut, nested):
    path = pack(tmp_path / "cut.tar", [(f"{i}.jpg", BODY[:1000]) for i in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    if nested:
        path = pack(tmp_path / "outer.tar", [("cut.tar", path.read_bytes())])
    with pytest.raises(UserError, match=r"tar.* is damaged or no tar archive") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_broken_header_in_the_middle_is_refused(tmp_path):
    path = pack(tmp_path / "a.tar", [(f"{i}.jpg", BODY[:1000]) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[3 * 512 + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="breaks off after 1536 bytes"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"not a tar " * 1000, gzip.compress(BODY)[:-5000]])
def test_another_file_than_a_tar_is_refused(tmp_path, content):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tgz is damaged or no tar archive") as error:
        read(tmp_path / "a.tgz")
    assert "\n" not in str(error.value)


def test_a_gzip_that_is_cut_is_refused(tmp_path):
    path = pack(tmp_path / "a.tgz", [("a.jpg", BODY), ("b.jpg", BODY)], "w:gz")
    path.write_bytes(path.read_bytes()[:1_200_000])
    with pytest.raises(UserError, match="is damaged"):
        read(path)


def test_more_data_than_expected_is_refused_before_it_is_read(tmp_path):
    path = pack(tmp_path / "a.tar", [("a.jpg", BODY), ("b.jpg", BODY)])
    with pytest.raises(UserError, match="more data than the set has"):
        read(path, limit=1_500_000)


def header(name, size, kind=tarfile.REGTYPE):
    """Return the header of a member that says it has ``size`` bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


END = bytes(2 * tarfile.BLOCKSIZE)
LONG = 50 << 20
HOSTILE = {
    "a PAX header of 50 MB": header("x", LONG, tarfile.XHDTYPE) + b"x" * LONG + END,
    "a global PAX header of 50 MB": header("x", LONG, tarfile.XGLTYPE) + b"x" * LONG + END,
    "a name of 50 MB": header("x", LONG, tarfile.GNUTYPE_LONGNAME) + b"x" * LONG + END,
    "a thousand PAX headers": header("x", 0, tarfile.XHDTYPE) * 1000 + header("x", 0) + END,
    "a size that is not there": header("x.jpg", 1 << 27),
    "a terabyte": header("x.jpg", 1 << 40),
    "a negative size": header("x.jpg", -512) + END,
    "a negative size of a PAX header": header("x", -512, tarfile.XHDTYPE) + END,
    "a sparse file": header("x.jpg", 1 << 20, tarfile.GNUTYPE_SPARSE) + END,
    "a size in a PAX header": header("x", 512, tarfile.XHDTYPE)
    + b"16 size=-1000000\n".ljust(512, b"\0")
    + header("y", 0),
    "NUL in a name": header("x", 512, tarfile.XHDTYPE) + b"12 path=a\0b\n".ljust(512, b"\0") + header("y", 0) + END,
    "a million empty files": header("x.jpg", 0) * 1000,
    "noise": random.Random(2).randbytes(100_000),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("form", ["plain", "compressed", "nested"])
def test_a_hostile_tar_is_one_sentence_and_little_memory(tmp_path, data, form):
    path = tmp_path / "hostile.tar"
    path.write_bytes(gzip.compress(data, 1) if form == "compressed" else data)
    if form == "nested":
        path = pack(tmp_path / "outer.tar", [("hostile.tar", data)])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"(hostile|outer)\.tar"):
        read(path, limit=400_000 if len(data) < 600_000 else 1 << 30)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_a_compressed_tar_within_a_tar_is_refused(tmp_path):
    bomb = gzip.compress(pack(tmp_path / "bomb", [("x.jpg", bytes(50 << 20))]).read_bytes())
    with pytest.raises(UserError, match=r"bomb\.tar is damaged or no tar archive"):
        read(pack(tmp_path / "outer.tar", [("bomb.tar", bomb)]))


def test_members_that_were_read_are_forgotten(tmp_path):
    path = tmp_path / "many.tar"
    path.write_bytes(header("x.jpg", 0) * 4_000 + END)
    tracemalloc.start()
    assert sum(1 for _ in tar_files(path, path.name, 1 << 30)) == 4_000
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
