import numpy as np
import pytest
from PIL import Image

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.sharding import leakage
from denoise.sharding.image_set import read_image_set
from denoise.sharding.leakage import refuse_overlap, refuse_trained_on, training_images
from denoise.sharding.result_cache import ResultCache
from denoise.sharding.writer import write_shards
from pipelines.datasets.shard import find_sources


@pytest.fixture
def sharded(tmp_path):
    def make(name, **images):
        folder = tmp_path / name
        folder.mkdir()
        for stem, pixels in images.items():
            write_image(folder / f"{stem}.png", DecodedImage(np.ascontiguousarray(pixels)))
        write_shards(tmp_path / f"{name}-shards", find_sources(folder), 1)
        return name, Shards.open(tmp_path / f"{name}-shards")

    return make


@pytest.fixture(scope="module")
def pixels(photographs):
    return {name: read_image(photographs / f"{name}.png").pixels[:256, :384] for name in ("coffee", "chelsea", "ihc")}


@pytest.fixture
def kept(tmp_path):
    """Return what reads the set that a model keeps of training images."""

    def read(*train):
        (tmp_path / "images.bin").write_bytes(training_images(train))
        return read_image_set(tmp_path / "images.bin")

    return read


@pytest.fixture
def reads(monkeypatch):
    """The folders of shards whose fingerprints are read, in order."""
    read = []
    fingerprints = Shards.fingerprints_of
    monkeypatch.setattr(
        Shards, "fingerprints_of", lambda shards, number: read.append(shards.name) or fingerprints(shards, number)
    )
    return read


@pytest.fixture
def cache(tmp_path):
    return ResultCache(tmp_path / "cache")


@pytest.fixture
def alike(sharded, pixels):
    """Return a training set, and a test set that holds a smaller version of one of its images."""
    small = np.asarray(Image.fromarray(pixels["chelsea"]).resize((192, 128), Image.Resampling.LANCZOS))
    return sharded("train", **pixels), sharded("test", small=small)


def test_the_same_pixels_in_another_format_are_refused(sharded, small_images, small_shards):
    train = ("small", Shards.open(small_shards))
    test = sharded("mine", other=read_image(small_images / "1-rocket.jpg").pixels)
    with pytest.raises(UserError, match=r"1 images of the test set mine .* other\.png = 1-rocket\.jpg"):
        refuse_overlap([train], [test], ())
    refuse_overlap([train], [test], ("mine",))


def test_a_grey_version_is_refused(sharded, pixels):
    weights = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])
    grey = np.floor(pixels["coffee"] @ weights + 0.5).astype(np.uint8)[..., None]
    with pytest.raises(UserError, match="1 images of the test set grey"):
        refuse_overlap([sharded("colour", **pixels)], [sharded("grey", x=grey)], ())


def test_a_resized_image_is_warned_about(alike, capsys):
    train, test = alike
    refuse_overlap([train], [test], ())
    message = capsys.readouterr().err
    assert "1 images of the training set train look like" in message
    assert "chelsea.png ~ small.png" in message


def test_other_images_are_not_warned_about(sharded, pixels, capsys):
    first, *others = pixels
    refuse_overlap([sharded("a", x=pixels[first])], [sharded("b", **{name: pixels[name] for name in others})], ())
    assert capsys.readouterr().err == ""


def test_the_second_time_nothing_is_read_and_the_warning_is_the_same(alike, cache, reads, capsys):
    train, test = alike
    refuse_overlap([train], [test], (), cache)
    first = capsys.readouterr().err
    assert "chelsea.png ~ small.png" in first
    assert reads
    reads.clear()
    refuse_overlap([train], [test], (), cache)
    refuse_overlap([("other name", train[1])], [test], (), cache)
    assert capsys.readouterr().err == first + first.replace("set train", "set other name")
    assert reads == []


def test_only_the_set_that_is_new_is_compared(alike, sharded, pixels, cache, reads):
    train, test = alike
    refuse_overlap([train], [test], (), cache)
    reads.clear()
    new = sharded("new", rotated=np.rot90(pixels["ihc"]))
    refuse_overlap([train, new], [test], (), cache)
    assert reads == [test[1].name, new[1].name]


def test_an_overlap_is_never_remembered_nor_hidden_by_what_is(sharded, pixels, cache):
    train, test = sharded("train", **pixels), sharded("test", x=pixels["ihc"])
    other = sharded("other", x=np.rot90(pixels["ihc"]))
    refuse_overlap([train], [other], (), cache)
    refuse_overlap([train], [test], ("test",), cache)
    for _ in range(2):
        with pytest.raises(UserError, match="1 images of the test set test"):
            refuse_overlap([train], [other, test], (), cache)
    (entry,) = cache.folder.iterdir()
    key = entry.read_bytes()
    cache.put(leakage._key(train[1], test[1]), b"[0, []]")
    (forged,) = set(cache.folder.iterdir()) - {entry}
    forged.write_bytes(key)  # what is true of another pair of sets
    with pytest.raises(UserError, match="1 images of the test set test"):
        refuse_overlap([train], [test], (), cache)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-2] + b"9\n"])
def test_a_damaged_result_is_found_anew(alike, cache, reads, damage):
    train, test = alike
    refuse_overlap([train], [test], (), cache)
    (entry,) = cache.folder.iterdir()
    data = entry.read_bytes()
    entry.write_bytes(damage(data))
    reads.clear()
    refuse_overlap([train], [test], (), cache)
    assert reads
    assert entry.read_bytes() == data


def test_a_cache_that_cannot_be_written_changes_nothing(alike, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    train, test = alike
    for _ in range(2):
        refuse_overlap([train], [test], (), ResultCache(tmp_path / "file" / "cache"))
        assert "chelsea.png ~ small.png" in capsys.readouterr().err


def test_the_set_of_training_images_is_made_once(small_shards, cache, reads):
    shards = Shards.open(small_shards)
    first = training_images([shards], cache)
    assert first == training_images([shards])
    reads.clear()
    assert training_images([shards], cache) == first
    assert reads == []
    assert training_images([shards, shards], cache) == training_images([shards, shards])


def test_a_training_image_is_recognised_under_another_name_and_in_grey(sharded, pixels, kept):
    weights = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])
    grey = np.floor(pixels["coffee"] @ weights + 0.5).astype(np.uint8)[..., None]
    trained_on = kept(sharded("train", **pixels)[1])
    test = sharded("test", other=pixels["coffee"][:100], grey=grey)
    with pytest.raises(UserError, match=r"1 images of the test set test are among .* \(for example grey\.png\)"):
        refuse_trained_on(trained_on, [test], ())
    refuse_trained_on(trained_on, [test], ("test",))
    refuse_trained_on(kept(sharded("ihc", ihc=pixels["ihc"])[1]), [test], ())


def test_more_images_than_a_set_holds_are_not_kept(small_shards, monkeypatch, kept):
    shards = Shards.open(small_shards)
    assert kept(shards).contains([grey for _, grey, _ in shards.fingerprints()]).all()
    monkeypatch.setattr(leakage, "MAX_IMAGES", 2 * len(shards) - 1)
    assert training_images([shards])
    assert training_images([shards, shards]) == b""


def test_bsd68_is_found_in_bsds300(mirror, tmp_path):
    write_shards(tmp_path / "bsds300", find_sources(mirror / "BSDS300" / "images" / "test"), 1 << 30)
    write_shards(tmp_path / "bsd68", find_sources(mirror / "bsd68"), 1 << 30)
    train, test = Shards.open(tmp_path / "bsds300"), Shards.open(tmp_path / "bsd68")
    with pytest.raises(UserError, match="68 images of the test set bsd68 are in the training set mine"):
        refuse_overlap([("mine", train)], [("bsd68", test)], ())
