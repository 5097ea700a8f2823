"""The table of data sets: names, splits, checksums."""

import pytest

from denoise.errors import UserError
from pipelines.datasets.catalog import SETS, checksums, choose_splits, data_set, parse_checksums, sample_path

pytestmark = pytest.mark.smoke

COUNTS = {
    "samples": {"train": 10, "val": 2, "test": 3},
    "kodak": {"test": 24},
    "bsds300": {"train": 200, "test": 100},
    "imagenet": {"train": 0, "val": 0},
    "imagenet_val": {"train": 0},
    "bsd400": {"train": 400},
    "bsd68": {"test": 68},
    "cbsd68": {"test": 68},
    "polyu": {"train": 140, "test": 60},
}


def test_every_set_has_its_splits_and_images():
    assert {name: {split: len(files) for split, files in checksums(name).items()} for name in SETS} == COUNTS
    assert all(known.name == name and known.source.startswith("https://") for name, known in SETS.items())


def test_no_image_is_in_two_splits_of_a_set():
    for name in SETS:
        digests = [digest for files in checksums(name).values() for digest in files.values()]
        assert len(set(digests)) == len(digests), name


def test_the_pinned_checksums_are_those_of_the_mirror(mirror):
    there = parse_checksums((mirror / "SHA256SUMS").read_text(), "SHA256SUMS")
    for name in set(SETS) - {"samples", "imagenet"}:
        for split, files in checksums(name).items():
            for file, digest in files.items():
                assert there[SETS[name].layout.format(split=split, file=file)] == digest


def test_polyu_holds_pairs():
    for files in checksums("polyu").values():
        noisy = {file.removesuffix("_real.JPG") for file in files if file.endswith("_real.JPG")}
        clean = {file.removesuffix("_mean.JPG") for file in files if file.endswith("_mean.JPG")}
        assert noisy == clean
        assert 2 * len(noisy) == len(files)


def test_an_unknown_set_names_the_nearest_and_all():
    with pytest.raises(UserError, match=r"'kodack' \(did you mean kodak\?\).*samples, kodak, bsds300"):
        data_set("kodack")


def test_splits_are_chosen_in_the_order_of_the_set():
    assert choose_splits(data_set("samples"), None) == ("train", "val", "test")
    assert choose_splits(data_set("samples"), ["test", "train"]) == ("train", "test")
    with pytest.raises(UserError, match="kodak has no split 'train': it has test"):
        choose_splits(data_set("kodak"), ["train"])


def test_every_sample_is_installed():
    assert all(sample_path(file).is_file() for files in checksums("samples").values() for file in files)


def test_a_sample_that_no_package_has_is_a_user_error():
    with pytest.raises(UserError, match=r"scikit-image has no lenna\.png"):
        sample_path("lenna.png")


@pytest.mark.parametrize(
    "line", ["no checksum", f"{'0' * 64}  ../outside", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  "]
)
def test_a_list_of_checksums_cannot_lead_out_of_its_folder(line):
    with pytest.raises(UserError, match="SHA256SUMS is no list of checksums"):
        parse_checksums(line, "SHA256SUMS")
