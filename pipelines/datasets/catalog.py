"""The known data sets: where each comes from, its splits, and the checksum of every image."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from denoise.errors import UserError, nearest
from denoise.files import is_sha256

GITHUB = "https://raw.githubusercontent.com"
DNCNN = f"{GITHUB}/cszn/DnCNN/master"
BSDS_LICENCE = "non-commercial research and education (Berkeley)"


@dataclass(frozen=True)
class DataSet:
    """A data set that ``denoise fetch`` knows.

    Attributes:
        name: what the user types.
        splits: those it has of train, val and test.
        title: its full name.
        source: the page or the repository it comes from.
        licence: what its images may be used for, in one line; docs/data.md says more.
        layout: the path of an image in a mirror, with {split} and {file} to fill in.
        address: the official address of one image, with {split} and {file}; None where there is none.
        archive: the official address of a tar that holds everything under ``layout``; None where there is none.
    """

    name: str
    splits: tuple[str, ...]
    title: str
    source: str
    licence: str
    layout: str
    address: str | None = None
    archive: str | None = None


_ALL = (
    DataSet(
        "samples",
        ("train", "val", "test"),
        "photographs that scikit-image and scikit-learn install",
        "https://scikit-image.org/docs/stable/api/skimage.data.html",
        "CC BY 2.0 (china, flower); the others CC0, public domain or without known restrictions",
        layout="samples/{split}/{file}",
    ),
    DataSet(
        "kodak",
        ("test",),
        "Kodak Lossless True Color Image Suite",
        "https://r0k.us/graphics/kodak/",
        "released by Eastman Kodak for unrestricted usage, as the site states",
        layout="kodak/{file}",
        address="https://r0k.us/graphics/kodak/kodak/{file}",
    ),
    DataSet(
        "bsds300",
        ("train", "test"),
        "Berkeley Segmentation Dataset, 300 images",
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/",
        BSDS_LICENCE,
        layout="BSDS300/images/{split}/{file}",
        archive="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/BSDS300-images.tgz",
    ),
    DataSet(
        "imagenet",
        ("train", "val"),
        "ImageNet, ILSVRC2012",
        "https://image-net.org/challenges/LSVRC/2012/",
        "non-commercial research and education; the copyright stays with the photographers",
        layout="imagenet/{split}/{file}",
    ),
    DataSet(
        "imagenet_val",
        ("train",),
        "ImageNet's validation images as a training set, as Laine et al. 2019 use them",
        "https://image-net.org/challenges/LSVRC/2012/",
        "non-commercial research and education; the copyright stays with the photographers",
        layout="imagenet/val/{file}",
    ),
    DataSet(
        "bsd400",
        ("train",),
        "Train400, the grayscale training crops of DnCNN",
        "https://github.com/cszn/DnCNN",
        BSDS_LICENCE,
        layout="bsd400/{file}",
        address=f"{DNCNN}/TrainingCodes/DnCNN_TrainingCodes_v1.0/data/Train400/{{file}}",
    ),
    DataSet(
        "bsd68",
        ("test",),
        "BSD68, the grayscale denoising test set",
        "https://github.com/cszn/DnCNN",
        BSDS_LICENCE,
        layout="bsd68/{file}",
        address=f"{DNCNN}/testsets/BSD68/{{file}}",
    ),
    DataSet(
        "cbsd68",
        ("test",),
        "CBSD68, the photographs of BSD68 in colour",
        "https://github.com/clausmichele/CBSD68-dataset",
        BSDS_LICENCE,
        layout="cbsd68/{file}",
        address=f"{GITHUB}/clausmichele/CBSD68-dataset/master/CBSD68/original_png/{{file}}",
    ),
    DataSet(
        "polyu",
        ("train", "test"),
        "PolyU real-world noisy photographs, pairs of <stem>_real.JPG (noisy) and <stem>_mean.JPG (clean)",
        "https://github.com/csjunxu/PolyU-Real-World-Noisy-Images-Dataset",
        "non-commercial; keep the notice (The Hong Kong Polytechnic University, 2018)",
        layout="polyu/{split}/{file}",
        address=f"{GITHUB}/csjunxu/PolyU-Real-World-Noisy-Images-Dataset/master/CroppedImages/{{file}}",
    ),
)
SETS: dict[str, DataSet] = {dataset.name: dataset for dataset in _ALL}


def data_set(name: str) -> DataSet:
    """Return the data set called ``name``; UserError if there is none."""
    if name not in SETS:
        raise UserError(f"no data set is called {name!r}{nearest(name, SETS)}: the known ones are {', '.join(SETS)}")
    return SETS[name]


def choose_splits(dataset: DataSet, wanted: Iterable[str] | None) -> tuple[str, ...]:
    """Return the wanted splits (None: all) in the order of the set; UserError for one that it does not have."""
    if wanted is None:
        return dataset.splits
    names = tuple(wanted)
    for split in names:
        if split not in dataset.splits:
            hint = nearest(split, dataset.splits)
            raise UserError(f"{dataset.name} has no split {split!r}{hint}: it has {' and '.join(dataset.splits)}")
    return tuple(split for split in dataset.splits if split in names)


@cache
def checksums(name: str) -> dict[str, dict[str, str]]:
    """Return split -> file name -> sha256 of each image of a set; empty for ImageNet, of which users bring a copy."""
    pinned = files("pipelines.datasets") / "checksums" / f"{name}.txt"
    digests: dict[str, dict[str, str]] = {split: {} for split in SETS[name].splits}
    if pinned.is_file():
        for path, digest in parse_checksums(pinned.read_text(encoding="utf-8"), f"{name}.txt").items():
            split, _, file = path.partition("/")
            digests[split][file] = digest
    return digests


def parse_checksums(text: str, origin: str) -> dict[str, str]:
    """Return path -> sha256 from the lines "sha256  path" that sha256sum writes.

    Args:
        text: the lines.
        origin: where they come from, for messages.

    Raises:
        UserError: a line has another form, or its path leads out of the folder.
    """
    digests = {}
    for line in text.splitlines():
        digest, _, path = line.partition("  ")
        parts = PurePosixPath(path).parts
        if not (is_sha256(digest) and parts and path.isprintable()) or parts[0] == "/" or ".." in parts:
            raise UserError(f"{origin} is no list of checksums: expected 'sha256  path' lines, got {line[:80]!r}")
        digests[str(PurePosixPath(path))] = digest
    return digests


def sample_path(file: str) -> Path:
    """Return the path of an image of ``samples`` in the installed packages; UserError if it is missing."""
    in_sklearn = file in ("china.jpg", "flower.jpg")
    package, distribution = ("sklearn", "scikit-learn") if in_sklearn else ("skimage", "scikit-image")
    folder = Path("datasets", "images") if in_sklearn else Path("data")
    spec = find_spec(package)  # has the folder without the seconds that importing takes
    for root in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(root) / folder / file).is_file():
            return path
    raise UserError(f"the installed {distribution} has no {file}, which samples needs: install {distribution} again")
