"""Tars that lead out, are cut, damaged, too large or no tars."""

import gzip
import hashlib
import io
import random
import tarfile

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
