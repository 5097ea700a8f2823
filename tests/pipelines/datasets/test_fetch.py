"""Fetching whole sets: from installed packages, folders, sites and archives; twice, without the network, damaged."""

import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from denoise.errors import UserError
from pipelines.datasets.catalog import SETS, checksums
from pipelines.datasets.fetch import fetch
from tests.pipelines.mirror_helpers import digests, flip, in_raw

PINNED = sorted(set(SETS) - {"samples", "imagenet", "imagenet_val"})


def test_samples_need_neither_network_nor_mirror(tmp_path):
    folders = fetch("samples", tmp_path)
    assert folders == [tmp_path / "raw" / split / "samples" for split in ("train", "val", "test")]
    assert [digests(folder) for folder in folders] == list(checksums("samples").values())
    assert fetch("samples", tmp_path, mirror="/nowhere") == folders


@pytest.mark.parametrize("name", PINNED)
def test_a_folder_with_the_layout_of_a_mirror(mirror, tmp_path, name):
    folders = fetch(name, tmp_path, mirror=mirror)
    assert {folder.parent.name: digests(folder) for folder in folders} == checksums(name)
    assert {path.name for path in folders} == {name}


def test_one_split_only(mirror, tmp_path):
    assert fetch("polyu", tmp_path, splits=["test"], mirror=mirror.as_uri()) == [tmp_path / "raw" / "test" / "polyu"]
    assert "train" not in in_raw(tmp_path)


def test_a_site_is_read_once(mirror, tmp_path, serve):
    site = serve(mirror)
    for name in ("kodak", "bsds300"):
        fetch(name, tmp_path, mirror=site.url)
    site.stop()
    for name in ("kodak", "bsds300"):
        folders = fetch(name, tmp_path, mirror=site.url)
        assert {folder.parent.name: digests(folder) for folder in folders} == checksums(name)


def test_raw_comes_back_from_the_downloads_without_the_network(mirror, tmp_path, serve):
    site = serve(mirror)
    (folder,) = fetch("kodak", tmp_path, mirror=site.url)
    site.stop()
    shutil.rmtree(tmp_path / "raw")
    assert fetch("kodak", tmp_path, mirror=site.url) == [folder]
    assert digests(folder) == checksums("kodak")["test"]
    assert (folder / "kodim01.png").samefile(tmp_path / "downloads" / "kodak" / "test" / "kodim01.png")


def test_several_fetches_at_once_do_not_disturb_each_other(mirror, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch("kodak", tmp_path, mirror=mirror), range(4)))
    assert digests(*folders[0]) == checksums("kodak")["test"]
    assert in_raw(tmp_path)[:2] == ["test", "test/kodak"]


def test_raw_is_made_exact_again(small_mirror, tmp_path):
    (folder,) = fetch("kodak", tmp_path, mirror=small_mirror)
    (folder / "of-an-earlier-version.png").write_bytes(b"x")
    (folder / "kodim01.png").unlink()
    flip(folder / "kodim02.png")  # also the download, which is the same file
    fetch("kodak", tmp_path, mirror=small_mirror)
    assert digests(folder) == checksums("kodak")["test"]
    assert in_raw(tmp_path) == ["test", "test/kodak", *(f"test/kodak/kodim{i:02}.png" for i in range(1, 25))]


def test_a_damaged_download_that_cannot_be_replaced_leaves_raw_as_it_was(small_mirror, tmp_path):
    (folder,) = fetch("kodak", tmp_path, mirror=small_mirror)
    (folder / "extra").touch()
    flip(tmp_path / "downloads" / "kodak" / "test" / "kodim02.png")
    with pytest.raises(UserError, match="does not exist"):
        fetch("kodak", tmp_path, mirror=tmp_path / "gone")
    assert (folder / "extra").exists()


@pytest.mark.parametrize("through", ["folder", "site"])
def test_a_flipped_byte_in_a_mirror_is_refused(small_mirror, tmp_path, serve, through):
    flip(small_mirror / "kodak" / "kodim13.png")
    with pytest.raises(UserError, match=r"kodim13\.png has the wrong checksum"):
        fetch("kodak", tmp_path, mirror=small_mirror if through == "folder" else serve(small_mirror).url)
    assert not (tmp_path / "raw").exists()
    assert not list(tmp_path.rglob("downloads/kodak/test/*13*"))


def test_an_incomplete_mirror_names_what_is_missing(small_mirror, tmp_path, serve):
    (small_mirror / "kodak" / "kodim24.png").unlink()
    with pytest.raises(UserError, match=r"has no kodak/kodim24\.png"):
        fetch("kodak", tmp_path, mirror=small_mirror)
    with pytest.raises(UserError, match=r"kodim24\.png does not exist"):
        fetch("kodak", tmp_path, mirror=serve(small_mirror).url)
    with pytest.raises(UserError, match="has no polyu/train"):
        fetch("polyu", tmp_path, mirror=small_mirror)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", ["kodak", "bsds300", "imagenet"])
def test_a_missing_or_unreadable_mirror_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=r"the mirror .*nowhere does not exist"):
        fetch(name, tmp_path, mirror=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"s3://bucket cannot be read"):
        fetch(name, tmp_path, mirror="s3://bucket")
    with pytest.raises(UserError, match=r"Connection refused|answered"):
        fetch(name, tmp_path, mirror="http://127.0.0.1:1")
    assert not (tmp_path / "raw").exists()


def test_unknown_names_and_limits_that_do_not_apply(tmp_path):
    with pytest.raises(UserError, match="did you mean kodak"):
        fetch("kodac", tmp_path)
    with pytest.raises(UserError, match="kodak has no split"):
        fetch("kodak", tmp_path, splits=["train"])
    with pytest.raises(UserError, match="leave them out for kodak"):
        fetch("kodak", tmp_path, min_side=256)
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match="cannot fetch samples to"):
        fetch("samples", tmp_path / "data")


# --- the archive of BSDS300 --------------------------------------------------------------------------------------


def pack_bsds(mirror, path, extra=()):
    """Pack the official archive: BSDS300/images/{train,test}/*.jpg and two lists."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, kind in extra:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.add(mirror / "BSDS300", "BSDS300")


@pytest.mark.parametrize("through", ["folder", "file", "site"])
def test_the_packed_bsds300(mirror, tmp_path, serve, through):
    (tmp_path / "mirror").mkdir()
    archive = tmp_path / "mirror" / "BSDS300-images.tgz"
    pack_bsds(mirror, archive)
    site = serve(archive.parent)
    where = {"folder": archive.parent, "file": archive, "site": site.url}[through]
    fetch("bsds300", tmp_path, splits=["train"], mirror=where)
    site.stop()  # the archive was kept: the other split needs no network
    folders = fetch("bsds300", tmp_path, mirror=where)
    assert {folder.parent.name: digests(folder) for folder in folders} == checksums("bsds300")


@pytest.mark.parametrize(
    "member", [("BSDS300/../../outside", tarfile.REGTYPE), ("BSDS300/images/train/2092.jpg", tarfile.SYMTYPE)]
)
def test_a_malicious_archive(mirror, tmp_path, serve, member):
    (tmp_path / "mirror").mkdir()
    pack_bsds(mirror, tmp_path / "mirror" / "BSDS300-images.tgz", [member])
    with pytest.raises(UserError, match="not safe to unpack"):
        fetch("bsds300", tmp_path / "data", mirror=serve(tmp_path / "mirror").url)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"BSDS300-images.tgz", "bsds300.lock"}
    assert in_raw(tmp_path / "data") == list((tmp_path / "data" / "downloads" / "bsds300").iterdir()) == []


def test_an_archive_that_is_damaged_or_lacks_images(mirror, tmp_path, serve):
    archive = tmp_path / "mirror" / "BSDS300-images.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(mirror / "BSDS300" / "images" / "test", "BSDS300/images/test")
    site = serve(archive.parent)
    with pytest.raises(UserError, match=r"lacks 200 images, one is BSDS300/images/train/100075\.jpg"):
        fetch("bsds300", tmp_path, mirror=site.url)
    archive.write_bytes(archive.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="is damaged"):
        fetch("bsds300", tmp_path, mirror=site.url)
    assert not (tmp_path / "raw").exists()
    pack_bsds(mirror, archive)  # the bad one was not kept
    assert len(fetch("bsds300", tmp_path, mirror=site.url)) == 2
