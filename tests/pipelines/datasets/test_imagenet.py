"""Fetching ImageNet: from a mirror, the user's folder, the tars of ILSVRC2012."""

import io
import shutil
import tarfile

import pytest
from PIL import Image

from denoise.errors import UserError
from pipelines.datasets.fetch import fetch
from tests.pipelines.mirror_helpers import digests, flip, in_raw


def imagenet_of(mirror):
    return {split: digests(mirror / "imagenet" / split) for split in ("train", "val")}


def test_imagenet_without_a_mirror_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"register at https://image-net\.org.*denoise fetch imagenet --mirror PATH"):
        fetch("imagenet", tmp_path)


def test_imagenet_of_a_mirror_is_verified_linked_and_kept(small_mirror, tmp_path):
    folders = fetch("imagenet", tmp_path, mirror=small_mirror)
    assert {folder.parent.name: digests(folder) for folder in folders} == imagenet_of(small_mirror)
    name = next(iter(digests(folders[0])))
    assert (folders[0] / name).samefile(small_mirror / "imagenet" / "train" / name)
    before = folders[0].stat().st_ino
    assert fetch("imagenet", tmp_path, mirror=small_mirror) == fetch("imagenet", tmp_path) == folders
    assert folders[0].stat().st_ino == before  # not made again
    (folders[0] / name).unlink()
    with pytest.raises(UserError, match="register"):
        fetch("imagenet", tmp_path, splits=["train"])
    fetch("imagenet", tmp_path, mirror=small_mirror)
    assert digests(folders[0]) == imagenet_of(small_mirror)["train"]


def test_the_validation_images_of_imagenet_as_a_training_set(small_mirror, tmp_path):
    (folder,) = fetch("imagenet_val", tmp_path, mirror=small_mirror)
    assert folder == tmp_path / "raw" / "train" / "imagenet_val"
    assert digests(folder) == imagenet_of(small_mirror)["val"]
    assert fetch("imagenet_val", tmp_path) == [folder]  # without the mirror: it is there
    fetch("imagenet", tmp_path, mirror=small_mirror)  # another set, which leaves it alone
    assert fetch("imagenet_val", tmp_path) == [folder]


def test_a_flipped_byte_in_an_imagenet_mirror(small_mirror, tmp_path, serve):
    flip(next((small_mirror / "imagenet" / "val").rglob("*.JPEG")))
    with pytest.raises(UserError, match=r"\.JPEG is missing or not as SHA256SUMS"):
        fetch("imagenet", tmp_path, splits=["val"], mirror=small_mirror)
    with pytest.raises(UserError, match=r"\.JPEG has the wrong checksum"):
        fetch("imagenet", tmp_path, splits=["val"], mirror=serve(small_mirror).url)
    assert in_raw(tmp_path) == []


def test_a_site_with_imagenet_is_read_once(small_mirror, tmp_path, serve):
    site = serve(small_mirror)
    fetch("imagenet", tmp_path, mirror=site.url)
    site.stop()
    shutil.rmtree(tmp_path / "raw")
    folders = fetch("imagenet", tmp_path, mirror=site.url)
    assert {folder.parent.name: digests(folder) for folder in folders} == imagenet_of(small_mirror)


def test_a_site_without_a_list_cannot_give_imagenet(small_mirror, tmp_path, serve):
    (small_mirror / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS"):
        fetch("imagenet", tmp_path, mirror=serve(small_mirror).url)


def test_the_users_own_imagenet_folder(small_mirror, tmp_path):
    expected = imagenet_of(small_mirror)["train"]
    own = small_mirror / "imagenet"
    (own / "train" / "readme.txt").write_text("no image")
    shutil.rmtree(own / "val")
    (folder,) = fetch("imagenet", tmp_path, mirror=own)
    assert digests(folder) == expected
    with pytest.raises(UserError, match="has no ImageNet val images"):
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
    with pytest.raises(UserError, match="there is no image of imagenet train"):
        fetch("imagenet", tmp_path, mirror=tmp_path / "empty")


@pytest.fixture
def tars(small_mirror, tmp_path):
    """ILSVRC2012 as it is handed out: a tar of one tar a class, and a flat tar."""
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for of_class in sorted((small_mirror / "imagenet" / "train").iterdir()):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as inner:
                for path in of_class.iterdir():
                    inner.add(path, path.name)
            member = tarfile.TarInfo(f"{of_class.name}.tar")
            member.size = packed.tell()
            outer.addfile(member, io.BytesIO(packed.getvalue()))
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as outer:
        for number, path in enumerate(sorted((small_mirror / "imagenet" / "val").rglob("*.JPEG")), 1):
            outer.add(path, f"ILSVRC2012_val_{number:08}.JPEG")
    return folder


def test_the_tars_of_ilsvrc2012(small_mirror, tars, tmp_path):
    train, val = fetch("imagenet", tmp_path, mirror=tars)
    assert digests(train) == imagenet_of(small_mirror)["train"]
    assert sorted(digests(val)) == [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5)]
    assert sorted(digests(val).values()) == sorted(imagenet_of(small_mirror)["val"].values())
    shutil.rmtree(tmp_path / "raw")
    assert fetch("imagenet", tmp_path, mirror=tars / "ILSVRC2012_img_val.tar") == [val]
    with pytest.raises(UserError, match="has no ImageNet train images"):
        fetch("imagenet", tmp_path, splits=["train"], mirror=tars / "ILSVRC2012_img_val.tar")


def test_a_truncated_tar_of_ilsvrc2012_leaves_nothing(tars, tmp_path):
    tar = tars / "ILSVRC2012_img_train.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar.*is damaged"):
        fetch("imagenet", tmp_path, mirror=tar)
    assert in_raw(tmp_path) == []


@pytest.mark.parametrize("through", ["folder", "tars", "site"])
def test_the_size_filter_looks_at_both_sides(small_mirror, tars, tmp_path, serve, through):
    sizes = {}
    for path in (small_mirror / "imagenet" / "train").rglob("*.JPEG"):
        with Image.open(path) as header:
            sizes[f"{path.parent.name}/{path.name}"] = header.size
    low, high = sorted(min(size) for size in sizes.values())[1], sorted(max(size) for size in sizes.values())[-2]
    expected = {name for name, size in sizes.items() if low <= min(size) and max(size) <= high}
    assert 0 < len(expected) < len(sizes)
    source = {"folder": small_mirror / "imagenet", "tars": tars, "site": serve(small_mirror).url}[through]
    (folder,) = fetch("imagenet", tmp_path, splits=["train"], mirror=source, min_side=low, max_side=high)
    assert set(digests(folder)) == expected
    assert fetch("imagenet", tmp_path, splits=["train"], min_side=low, max_side=high) == [folder]
    fetch("imagenet", tmp_path, splits=["train"], mirror=source)  # another choice makes the folder again
    assert set(digests(folder)) == set(sizes)


def test_a_filter_that_keeps_nothing_and_a_file_without_size(small_mirror, tmp_path):
    with pytest.raises(UserError, match="with sides of 512 to 256 pixels"):
        fetch("imagenet", tmp_path, mirror=small_mirror, min_side=512, max_side=256)
    (small_mirror / "imagenet" / "train" / "broken.JPEG").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.JPEG is no image"):
        fetch("imagenet", tmp_path, mirror=small_mirror / "imagenet", max_side=2048)


def test_links_that_lead_back_are_left_out(tmp_path, photographs):
    folder = tmp_path / "ILSVRC2012" / "train" / "n01440764"
    folder.mkdir(parents=True)
    shutil.copy(photographs / "rocket.jpg", folder / "a.JPEG")
    for number in range(4):  # followed, they would make 4 to the power of 40 paths
        (folder / f"back{number}").symlink_to("..")
    (raw,) = fetch("imagenet", tmp_path / "data", splits=["train"], mirror=tmp_path / "ILSVRC2012")
    assert [path.relative_to(raw).as_posix() for path in raw.rglob("*.JPEG")] == ["n01440764/a.JPEG"]
