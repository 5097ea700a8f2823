"""What is read of a file of each kind, and that the same file can be written again."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from denoise.stacks.kinds import is_stack
from denoise.stacks.opening import open_stack
from tests.denoise.stacks.made_files import KINDS, Kind, values

PLACES = (273, 278, 279, 259, 317, 322, 323, 324, 325, 330)  # tags of where the pixels are, and of their coding


def copy(source: Path, target: Path) -> None:
    """Write a file again, plane by plane."""
    with open_stack(source) as stack, stack.create(target) as sink:
        for number in stack.order:
            sink[stack.layout.index(number)] = stack.layout.from_plane(stack.plane(number))


def read(path: Path) -> NDArray[Any]:
    if path.suffix == ".tif":
        return tifffile.imread(path)
    if path.suffix in (".npy", ".npz"):
        loaded = np.load(path)
        return loaded if path.suffix == ".npy" else loaded["movie"]
    if path.suffix == ".zarr":
        import zarr

        return zarr.open_group(path, mode="r")["0"][...]
    import mrcfile

    with mrcfile.open(path) as mrc:
        return mrc.data.copy()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def array(kind: Kind) -> NDArray[Any]:
    return values(kind.shape, kind.dtype)


@pytest.fixture
def file(kind: Kind, array: NDArray[Any], tmp_path: Path) -> Path:
    kind.write(tmp_path / kind.name, array)
    return tmp_path / kind.name


def test_shape_axes_type_and_values_are_those_of_the_file(kind: Kind, file: Path, array: NDArray[Any]) -> None:
    assert is_stack(file)
    with open_stack(file) as stack:
        assert (stack.layout.shape, stack.layout.axes, stack.dtype) == (
            kind.shape,
            kind.axes,
            array.dtype.newbyteorder("="),
        )
        assert len(stack) == len({stack.name(number) for number in range(len(stack))}) == kind.planes
        for number in range(len(stack)):
            plane = stack.plane(number)
            assert plane.shape == (*plane.shape[:2], 3 if "S" in kind.axes and 3 in kind.shape[-4:] else 1)
            expected = array[stack.layout.index(number)]
            np.testing.assert_array_equal(stack.layout.from_plane(plane), expected)


def test_the_same_file_is_written_again(kind: Kind, file: Path, array: NDArray[Any], tmp_path: Path) -> None:
    target = tmp_path / "again" / kind.name
    target.parent.mkdir()
    copy(file, target)
    again = read(target)
    assert (again.dtype, again.shape) == (read(file).dtype, array.shape)
    np.testing.assert_array_equal(again, array)
    assert [path.name for path in target.parent.iterdir()] == [kind.name]
    if kind.name.endswith(".npy"):
        assert target.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if ".mrc" in kind.name], ids=lambda kind: kind.name)
def test_an_mrc_keeps_its_headers(kind: Kind, file: Path, tmp_path: Path) -> None:
    copy(file, tmp_path / "again.mrc")
    before, after = file.read_bytes(), (tmp_path / "again.mrc").read_bytes()
    statistics = [*range(76, 88), *range(216, 220)]  # least, largest, mean; deviation
    assert [place for place in range(len(before)) if before[place] != after[place] and place not in statistics] == []
    header = np.frombuffer(after, "<f4")
    assert header[19:22].tolist() == pytest.approx(np.frombuffer(before, "<f4")[19:22].tolist(), rel=1e-3)


TIFFS = [kind for kind in KINDS if kind.name.endswith(".tif")]


@pytest.mark.parametrize("kind", TIFFS, ids=lambda kind: kind.name)
def test_a_tiff_keeps_its_metadata(kind: Kind, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "again.tif"
    copy(file, target)
    with tifffile.TiffFile(file) as before, tifffile.TiffFile(target) as after:
        assert [series.kind for series in after.series] == [series.kind for series in before.series]
        assert after.series[0].axes == before.series[0].axes == kind.axes
        assert str(after.imagej_metadata) == str(before.imagej_metadata)
        assert after.ome_metadata == before.ome_metadata
        assert (after.byteorder, after.is_bigtiff) == (before.byteorder, before.is_bigtiff)
        if kind.name != "one_file_one_page.tif":  # each of its pages has a directory afterwards
            assert len(after.pages) == len(before.pages)
            for number in range(len(before.pages)):
                assert tags(after, number) == tags(before, number)


def tags(tiff: tifffile.TiffFile, number: int) -> dict[int, str]:
    page = tiff.pages.get(number, aspage=True)
    return {tag.code: str(tag.value) for tag in page.tags if tag.code not in PLACES}


@pytest.mark.parametrize(
    ("name", "word"), [("ome_pyramid.tif", "reduced copies"), ("zarr3.ome.zarr", "more than its largest image")]
)
def test_reduced_copies_are_told(name: str, word: str, tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    kind.write(tmp_path / kind.name, values(kind.shape, kind.dtype))
    with open_stack(tmp_path / kind.name) as stack:
        assert word in stack.remarks[0]


@pytest.mark.parametrize("name", ["zarr2.ome.zarr", "zarr3.ome.zarr"])
def test_an_ome_zarr_keeps_its_metadata(name: str, tmp_path: Path) -> None:
    import zarr

    kind = next(kind for kind in KINDS if kind.name == name)
    kind.write(tmp_path / name, values(kind.shape, kind.dtype))
    copy(tmp_path / name, tmp_path / "again.zarr")
    before, after = (zarr.open_group(tmp_path / folder, mode="r") for folder in (name, "again.zarr"))
    (old,), (new,) = (dict(group.attrs).get("ome", dict(group.attrs))["multiscales"] for group in (before, after))
    assert new == {**old, "datasets": old["datasets"][:1]}
    assert after["0"].metadata == before["0"].metadata
    assert list(after.array_keys()) == ["0"]
    assert is_stack(tmp_path / "again.zarr")
    assert not is_stack(tmp_path)


def test_pages_are_written_in_the_order_of_the_file(tmp_path: Path) -> None:
    """OME-XML may say that the pages of a file lie in another order than the axes."""
    array = values((3, 2, 20, 24), "uint16")
    tifffile.imwrite(tmp_path / "a.ome.tif", array, ome=True, metadata={"axes": "TCYX"})
    xml = tifffile.tiffcomment(tmp_path / "a.ome.tif")
    one_block = '<TiffData IFD="0" PlaneCount="6"/>'
    assert one_block in xml
    places = [
        f'<TiffData IFD="{5 - 2 * t - c}" FirstT="{t}" FirstC="{c}" PlaneCount="1"/>'
        for t in range(3)
        for c in range(2)
    ]
    tifffile.tiffcomment(tmp_path / "a.ome.tif", xml.replace(one_block, "".join(places)).encode())
    expected = tifffile.imread(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(expected[0, 0], array[2, 1])
    with open_stack(tmp_path / "a.ome.tif") as stack:
        assert list(stack.order) == [5, 4, 3, 2, 1, 0]
    copy(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.ome.tif"), expected)


def test_planes_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Of a compressed stack no more than a page is decoded, of others nothing but what is asked for."""
    array = values((40, 256, 256), "float32")
    for compression in ("zlib", None):
        tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, photometric="minisblack")
        with open_stack(tmp_path / "a.tif") as stack:
            import tracemalloc

            tracemalloc.start()
            for number in range(len(stack)):
                stack.plane(number)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 6 * array[0].nbytes


MEMORY = """
import resource, sys
import subprocess
import sys
from pathlib import Path
from denoise.stacks.opening import open_stack
from denoise.stacks.survey import survey

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with open_stack(Path(sys.argv[1])) as stack, stack.create(Path(sys.argv[2])) as sink:
    survey(stack.plane(0))
    before = most()
    for number in stack.order:
        sink[stack.layout.index(number)] = stack.layout.from_plane(stack.plane(number))
print(most() - before)
"""


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_a_mapped_file_does_not_stay_in_memory(name: str, tmp_path: Path) -> None:
    """What is mapped counts as memory of the process, too."""
    array = np.zeros((100, 512, 512), np.float32)  # 100 MB
    if name == "a.npy":
        np.save(tmp_path / name, array)
    else:
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack")
    arguments = [sys.executable, "-c", MEMORY, tmp_path / name, tmp_path / f"b{name}"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert int(done.stdout) < 30
