"""Fetching whole sets: from installed packages, folders, sites and archives; twice, without the network, damaged."""

import hashlib
import io
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from denoise.errors import UserError
from pipelines import download
from pipelines.fetch import fetch
from pipelines.sets import SETS, checksums

PINNED = sorted(set(SETS) - {"samples", "imagenet", "imagenet_val"})


class Quiet(SimpleHTTPRequestHandler):
    """A plain file server that logs no line."""

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Try again without waiting, and past any proxy."""
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve():
    """Serve a folder; calling what comes second stops the server."""
    stops = []

    def start(folder):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def stop():
            server.shutdown()
            thread.join()
            server.server_close()

        stops.append(stop)
        return f"http://127.0.0.1:{server.server_port}/", stop

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def small(mirror, tmp_path):
    """A mirror that may be damaged: copies of kodak and of some ImageNet pictures, with their SHA256SUMS."""
    folder = tmp_path / "mirror"
    shutil.copytree(mirror / "kodak", folder / "kodak")
    for split in ("train", "val"):
        for source in sorted((mirror / "imagenet" / split).iterdir())[:4]:
            shutil.copytree(source, folder / "imagenet" / split / source.name)
    kept = [line for line in (mirror / "SHA256SUMS").read_text().splitlines() if (folder / line[66:]).is_file()]
    (folder / "SHA256SUMS").write_text("\n".join(kept))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)  # the source may be read-only
    return folder


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_raw(root):
    """What is below raw, folders and hidden ones included."""
    return sorted(path.relative_to(root / "raw").as_posix() for path in (root / "raw").rglob("*"))


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


def test_a_site_is_asked_once(mirror, tmp_path, serve):
    site, stop = serve(mirror)
    for name in ("kodak", "bsds300"):
        fetch(name, tmp_path, mirror=site)
    stop()
    for name in ("kodak", "bsds300"):
        folders = fetch(name, tmp_path, mirror=site)
        assert {folder.parent.name: digests(folder) for folder in folders} == checksums(name)


def test_raw_comes_back_from_the_downloads_without_the_network(mirror, tmp_path, serve):
    site, stop = serve(mirror)
    (folder,) = fetch("kodak", tmp_path, mirror=site)
    stop()
    shutil.rmtree(tmp_path / "raw")
    assert fetch("kodak", tmp_path, mirror=site) == [folder]
    assert digests(folder) == checksums("kodak")["test"]
    assert (folder / "kodim01.png").samefile(tmp_path / "downloads" / "kodak" / "test" / "kodim01.png")


def test_several_fetches_at_once_do_not_disturb_each_other(mirror, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch("kodak", tmp_path, mirror=mirror), range(4)))
    assert digests(*folders[0]) == checksums("kodak")["test"]
    assert in_raw(tmp_path)[:2] == ["test", "test/kodak"]


def test_raw_is_made_exact_again(small, tmp_path):
    (folder,) = fetch("kodak", tmp_path, mirror=small)
    (folder / "of-an-earlier-version.png").write_bytes(b"x")
    (folder / "kodim01.png").unlink()
    flip(folder / "kodim02.png")  # also the download, which is the same file
    fetch("kodak", tmp_path, mirror=small)
    assert digests(folder) == checksums("kodak")["test"]
    assert in_raw(tmp_path) == ["test", "test/kodak", *(f"test/kodak/kodim{i:02}.png" for i in range(1, 25))]


def test_a_damaged_download_that_cannot_be_replaced_leaves_raw_as_it_was(small, tmp_path):
    (folder,) = fetch("kodak", tmp_path, mirror=small)
    (folder / "extra").touch()
    flip(tmp_path / "downloads" / "kodak" / "test" / "kodim02.png")
    with pytest.raises(UserError, match="does not exist"):
        fetch("kodak", tmp_path, mirror=tmp_path / "gone")
    assert (folder / "extra").exists()


@pytest.mark.parametrize("through", ["folder", "site"])
def test_a_flipped_byte_in_a_mirror_is_refused(small, tmp_path, serve, through):
    flip(small / "kodak" / "kodim13.png")
    with pytest.raises(UserError, match=r"kodim13\.png has the wrong checksum"):
        fetch("kodak", tmp_path, mirror=small if through == "folder" else serve(small)[0])
    assert not (tmp_path / "raw").exists()
    assert not list(tmp_path.rglob("downloads/kodak/test/*13*"))


def test_a_mirror_that_is_not_whole_names_what_is_missing(small, tmp_path, serve):
    (small / "kodak" / "kodim24.png").unlink()
    with pytest.raises(UserError, match=r"has no kodak/kodim24\.png"):
        fetch("kodak", tmp_path, mirror=small)
    with pytest.raises(UserError, match=r"kodim24\.png does not exist"):
        fetch("kodak", tmp_path, mirror=serve(small)[0])
    with pytest.raises(UserError, match="has no polyu/train"):
        fetch("polyu", tmp_path, mirror=small)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", ["kodak", "bsds300", "imagenet"])
def test_a_mirror_that_is_none(tmp_path, name):
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
    with pytest.raises(UserError, match="cannot bring samples to"):
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
    address, stop = serve(archive.parent)
    where = {"folder": archive.parent, "file": archive, "site": address}[through]
    fetch("bsds300", tmp_path, splits=["train"], mirror=where)
    stop()  # the archive was kept: the other split needs no network
    folders = fetch("bsds300", tmp_path, mirror=where)
    assert {folder.parent.name: digests(folder) for folder in folders} == checksums("bsds300")


@pytest.mark.parametrize(
    "member", [("BSDS300/../../outside", tarfile.REGTYPE), ("BSDS300/images/train/2092.jpg", tarfile.SYMTYPE)]
)
def test_a_malicious_archive(mirror, tmp_path, serve, member):
    (tmp_path / "mirror").mkdir()
    pack_bsds(mirror, tmp_path / "mirror" / "BSDS300-images.tgz", [member])
    with pytest.raises(UserError, match="not safe to unpack"):
        fetch("bsds300", tmp_path / "data", mirror=serve(tmp_path / "mirror")[0])
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"BSDS300-images.tgz", "bsds300.lock"}
    assert in_raw(tmp_path / "data") == list((tmp_path / "data" / "downloads" / "bsds300").iterdir()) == []


def test_an_archive_that_is_damaged_or_lacks_pictures(mirror, tmp_path, serve):
    archive = tmp_path / "mirror" / "BSDS300-images.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(mirror / "BSDS300" / "images" / "test", "BSDS300/images/test")
    site, _ = serve(archive.parent)
    with pytest.raises(UserError, match=r"lacks 200 pictures, one is BSDS300/images/train/100075\.jpg"):
        fetch("bsds300", tmp_path, mirror=site)
    archive.write_bytes(archive.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="is damaged"):
        fetch("bsds300", tmp_path, mirror=site)
    assert not (tmp_path / "raw").exists()
    pack_bsds(mirror, archive)  # the bad one was not kept
    assert len(fetch("bsds300", tmp_path, mirror=site)) == 2


# --- ImageNet ----------------------------------------------------------------------------------------------------


def imagenet_of(mirror):
    return {split: digests(mirror / "imagenet" / split) for split in ("train", "val")}


def test_imagenet_without_a_mirror_tells_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"register at https://image-net\.org.*denoise fetch imagenet --mirror PATH"):
        fetch("imagenet", tmp_path)


def test_imagenet_of_a_mirror_is_verified_linked_and_kept(small, tmp_path):
    folders = fetch("imagenet", tmp_path, mirror=small)
    assert {folder.parent.name: digests(folder) for folder in folders} == imagenet_of(small)
    name = next(iter(digests(folders[0])))
    assert (folders[0] / name).samefile(small / "imagenet" / "train" / name)
    before = folders[0].stat().st_ino
    assert fetch("imagenet", tmp_path, mirror=small) == fetch("imagenet", tmp_path) == folders
    assert folders[0].stat().st_ino == before  # not made again
    (folders[0] / name).unlink()
    with pytest.raises(UserError, match="register"):
        fetch("imagenet", tmp_path, splits=["train"])
    fetch("imagenet", tmp_path, mirror=small)
    assert digests(folders[0]) == imagenet_of(small)["train"]


def test_the_validation_pictures_of_imagenet_as_a_training_set(small, tmp_path):
    (folder,) = fetch("imagenet_val", tmp_path, mirror=small)
    assert folder == tmp_path / "raw" / "train" / "imagenet_val"
    assert digests(folder) == imagenet_of(small)["val"]
    assert fetch("imagenet_val", tmp_path) == [folder]  # without the mirror: it is there
    fetch("imagenet", tmp_path, mirror=small)  # another set, which leaves it alone
    assert fetch("imagenet_val", tmp_path) == [folder]


def test_a_flipped_byte_in_an_imagenet_mirror(small, tmp_path, serve):
    flip(next((small / "imagenet" / "val").rglob("*.JPEG")))
    with pytest.raises(UserError, match=r"\.JPEG is missing or not as SHA256SUMS"):
        fetch("imagenet", tmp_path, splits=["val"], mirror=small)
    with pytest.raises(UserError, match=r"\.JPEG has the wrong checksum"):
        fetch("imagenet", tmp_path, splits=["val"], mirror=serve(small)[0])
    assert in_raw(tmp_path) == []


def test_imagenet_of_a_site_is_asked_once(small, tmp_path, serve):
    site, stop = serve(small)
    fetch("imagenet", tmp_path, mirror=site)
    stop()
    shutil.rmtree(tmp_path / "raw")
    folders = fetch("imagenet", tmp_path, mirror=site)
    assert {folder.parent.name: digests(folder) for folder in folders} == imagenet_of(small)


def test_a_site_without_a_list_cannot_give_imagenet(small, tmp_path, serve):
    (small / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS"):
        fetch("imagenet", tmp_path, mirror=serve(small)[0])


def test_the_users_own_imagenet_folder(small, tmp_path):
    expected = imagenet_of(small)["train"]
    own = small / "imagenet"
    (own / "train" / "readme.txt").write_text("no picture")
    shutil.rmtree(own / "val")
    (folder,) = fetch("imagenet", tmp_path, mirror=own)
    assert digests(folder) == expected
    with pytest.raises(UserError, match="has no ImageNet val pictures"):
        fetch("imagenet", tmp_path, splits=["val"], mirror=own)
    added = own / "train" / "n99999999" / "new.JPEG"
    added.parent.mkdir()
    shutil.copyfile(next((own / "train").rglob("*.JPEG")), added)
    assert "n99999999/new.JPEG" in digests(*fetch("imagenet", tmp_path, mirror=own))


def test_a_folder_without_imagenet(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected a folder train/ or ILSVRC2012_img_train\.tar"):
        fetch("imagenet", tmp_path, mirror=tmp_path / "empty")
    (tmp_path / "empty" / "train").mkdir()
    with pytest.raises(UserError, match="there is no picture of imagenet train"):
        fetch("imagenet", tmp_path, mirror=tmp_path / "empty")


@pytest.fixture
def tars(small, tmp_path):
    """ILSVRC2012 as it is handed out: a tar of one tar a class, and a flat tar."""
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for of_class in sorted((small / "imagenet" / "train").iterdir()):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as inner:
                for path in of_class.iterdir():
                    inner.add(path, path.name)
            member = tarfile.TarInfo(f"{of_class.name}.tar")
            member.size = packed.tell()
            outer.addfile(member, io.BytesIO(packed.getvalue()))
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as outer:
        for number, path in enumerate(sorted((small / "imagenet" / "val").rglob("*.JPEG")), 1):
            outer.add(path, f"ILSVRC2012_val_{number:08}.JPEG")
    return folder


def test_the_tars_of_ilsvrc2012(small, tars, tmp_path):
    train, val = fetch("imagenet", tmp_path, mirror=tars)
    assert digests(train) == imagenet_of(small)["train"]
    assert sorted(digests(val)) == [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5)]
    assert sorted(digests(val).values()) == sorted(imagenet_of(small)["val"].values())
    shutil.rmtree(tmp_path / "raw")
    assert fetch("imagenet", tmp_path, mirror=tars / "ILSVRC2012_img_val.tar") == [val]
    with pytest.raises(UserError, match="has no ImageNet train pictures"):
        fetch("imagenet", tmp_path, splits=["train"], mirror=tars / "ILSVRC2012_img_val.tar")


def test_a_truncated_tar_of_ilsvrc2012_leaves_nothing(tars, tmp_path):
    tar = tars / "ILSVRC2012_img_train.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar.*is damaged"):
        fetch("imagenet", tmp_path, mirror=tar)
    assert in_raw(tmp_path) == []


@pytest.mark.parametrize("through", ["folder", "tars", "site"])
def test_the_size_filter_looks_at_both_sides(small, tars, tmp_path, serve, through):
    sizes = {}
    for path in (small / "imagenet" / "train").rglob("*.JPEG"):
        with Image.open(path) as header:
            sizes[f"{path.parent.name}/{path.name}"] = header.size
    low, high = sorted(min(size) for size in sizes.values())[1], sorted(max(size) for size in sizes.values())[-2]
    expected = {name for name, size in sizes.items() if low <= min(size) and max(size) <= high}
    assert 0 < len(expected) < len(sizes)
    source = {"folder": small / "imagenet", "tars": tars, "site": serve(small)[0]}[through]
    (folder,) = fetch("imagenet", tmp_path, splits=["train"], mirror=source, min_side=low, max_side=high)
    assert set(digests(folder)) == expected
    assert fetch("imagenet", tmp_path, splits=["train"], min_side=low, max_side=high) == [folder]
    fetch("imagenet", tmp_path, splits=["train"], mirror=source)  # another choice makes the folder again
    assert set(digests(folder)) == set(sizes)


def test_a_filter_that_keeps_nothing_and_a_file_without_size(small, tmp_path):
    with pytest.raises(UserError, match="with sides of 512 to 256 pixels"):
        fetch("imagenet", tmp_path, mirror=small, min_side=512, max_side=256)
    (small / "imagenet" / "train" / "broken.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.JPEG is no picture"):
        fetch("imagenet", tmp_path, mirror=small / "imagenet", max_side=2048)
