import numpy as np
import pytest
from PIL import Image

from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.sharding import leakage
from denoise.sharding.leakage import refuse_overlap, refuse_trained_on, training_images
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


def test_a_resized_image_is_warned_about(sharded, pixels, capsys):
    small = np.asarray(Image.fromarray(pixels["chelsea"]).resize((192, 128), Image.Resampling.LANCZOS))
    refuse_overlap([sharded("train", **pixels)], [sharded("test", small=small)], ())
    message = capsys.readouterr().err
    assert "1 images of the training set train look like" in message
    assert "chelsea.png ~ small.png" in message


def test_other_images_are_not_warned_about(sharded, pixels, capsys):
    first, *others = pixels
    refuse_overlap([sharded("a", x=pixels[first])], [sharded("b", **{name: pixels[name] for name in others})], ())
    assert capsys.readouterr().err == ""


def test_a_training_image_is_recognised_under_another_name_and_in_grey(sharded, pixels):
    weights = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])
    grey = np.floor(pixels["coffee"] @ weights + 0.5).astype(np.uint8)[..., None]
    trained_on = training_images([sharded("train", **pixels)[1]])
    test = sharded("test", other=pixels["coffee"][:100], grey=grey)
    with pytest.raises(UserError, match=r"1 images of the test set test are among .* \(for example grey\.png\)"):
        refuse_trained_on(trained_on, [test], ())
    refuse_trained_on(trained_on, [test], ("test",))
    refuse_trained_on(training_images([sharded("ihc", ihc=pixels["ihc"])[1]]), [test], ())


def test_more_images_than_a_set_holds_are_not_kept(small_shards, monkeypatch):
    shards = Shards.open(small_shards)
    assert training_images([shards]).contains([grey for _, grey, _ in shards.fingerprints()]).all()
    monkeypatch.setattr(leakage, "MAX_IMAGES", 2 * len(shards) - 1)
    assert training_images([shards]) is not None
    assert training_images([shards, shards]) is None


def test_bsd68_is_found_in_bsds300(mirror, tmp_path):
    write_shards(tmp_path / "bsds300", find_sources(mirror / "BSDS300" / "images" / "test"), 1 << 30)
    write_shards(tmp_path / "bsd68", find_sources(mirror / "bsd68"), 1 << 30)
    train, test = Shards.open(tmp_path / "bsds300"), Shards.open(tmp_path / "bsd68")
    with pytest.raises(UserError, match="68 images of the test set bsd68 are in the training set mine"):
        refuse_overlap([("mine", train)], [("bsd68", test)], ())
