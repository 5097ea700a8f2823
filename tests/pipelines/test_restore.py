"""Files and folders in, restored files out."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoise.errors import UserError
from denoise.images import io
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.images.tiles import Tiles
from denoise.rng import Rng
from pipelines.restore import files
from pipelines.restore.files import restore_files
from pipelines.restore.planning import plan


@dataclass
class Darker:
    """A denoiser made from a real net: a convolution that leaves 0.6 of every sample."""

    channels: int = 3
    multiple: int = 32
    noise: str = "gauss25"
    name: str = "n2n"
    needs_level: bool = False
    pixels_per_pass: int = 1 << 20
    tiles: Tiles | None = None
    value_range: None = None
    before: Callable[[], object] = bool  # called before each tile

    def __post_init__(self) -> None:
        self.net = nn.Conv2d(self.channels, self.channels, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        with torch.no_grad():
            self.net.weight[range(self.channels), range(self.channels)] = 0.6

    def __call__(self, noisy: Tensor, sigma: Tensor | None = None, rng: Rng | None = None) -> Tensor:
        self.before()
        return self.net(noisy)


def darker(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels * 0.6).astype(pixels.dtype)  # 0.6 leaves no halves to round


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """A folder of images: colour, grey, 16 bits with alpha, a name in capitals, subfolders, and other files."""
    folder = tmp_path / "in"
    (folder / "deep" / "er").mkdir(parents=True)
    colour = read_image(photographs / "chelsea.png")
    grey = read_image(photographs / "camera.png").pixels
    write_image(folder / "b.png", DecodedImage(colour.pixels[:70, :101], icc=colour.icc))
    write_image(folder / "a.JPG", DecodedImage(colour.pixels[100:133, :47]))
    deep = colour.pixels[:50, :60].astype(np.uint16) * 251
    write_image(folder / "deep" / "c.tif", DecodedImage(deep, deep[..., 0]))
    write_image(folder / "deep" / "er" / "d.webp", DecodedImage(grey[:1, :90]))
    (folder / "notes.txt").write_text("no image")
    write_image(folder / ".hidden.png", DecodedImage(grey[:9, :9]))
    return folder


def test_a_folder_keeps_its_layout(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    results = restore_files([folder], out, Darker(), tile=64, overlap=32)
    names = ["a.JPG", "b.png", "deep/c.tif", "deep/er/d.webp"]
    assert [str(result.target.relative_to(out)) for result in results] == names
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == names
    assert all(result.seconds > 0 for result in results)
    for name in names:
        noisy, restored = read_image(folder / name), read_image(out / name)
        if name != "a.JPG":
            np.testing.assert_array_equal(restored.pixels, darker(noisy.pixels))
        assert restored.pixels.dtype == noisy.pixels.dtype
        assert restored.pixels.shape == noisy.pixels.shape
        assert restored.icc == noisy.icc
    np.testing.assert_array_equal(read_image(out / "deep/c.tif").alpha, read_image(folder / "deep/c.tif").alpha)
    assert "restore: 10/10 tiles" in capsys.readouterr().err


def test_one_file_to_one_file_of_another_format(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "restored.tif"
    (result,) = restore_files([folder / "b.png"], target, Darker())
    assert (result.source, result.target) == (folder / "b.png", target)
    np.testing.assert_array_equal(read_image(target).pixels, darker(read_image(folder / "b.png").pixels))
    assert [path.name for path in target.parent.iterdir()] == ["restored.tif"]


def test_one_file_into_a_folder(folder: Path, tmp_path: Path) -> None:
    (new,) = plan([folder / "b.png"], tmp_path / "out")
    assert new == (folder / "b.png", tmp_path / "out" / "b.png")
    (tmp_path / "2024.05").mkdir()
    (existing,) = plan([folder / "b.png"], tmp_path / "2024.05")
    assert existing[1] == tmp_path / "2024.05" / "b.png"


def test_files_and_folders_together_and_twice(folder: Path, tmp_path: Path) -> None:
    pairs = plan([folder / "b.png", folder / "deep", folder / "b.png"], tmp_path / "out")
    assert [str(target.relative_to(tmp_path)) for _, target in pairs] == ["out/b.png", "out/c.tif", "out/er/d.webp"]


def test_formats_that_are_only_read_become_png(photographs: Path, tmp_path: Path) -> None:
    data = (photographs / "camera.png").read_bytes()
    for name in ("a.gif", "photo", "scan.001"):
        (tmp_path / name).write_bytes(data)
    pairs = plan([tmp_path / name for name in ("a.gif", "photo", "scan.001")], tmp_path / "out")
    assert [target.name for _, target in pairs] == ["a.png", "photo.png", "scan.001.png"]


def test_strange_names_stay_as_they_are(photographs: Path, tmp_path: Path) -> None:
    data = (photographs / "camera.png").read_bytes()
    names = [
        os.fsdecode(b"caf\xe9.png"),
        "-a.png",
        "a\nb\x1b[2J.png",
        "m" * 246 + ".png",
        "A.png",
        "a.png",
        "é.png",
        "e\u0301.png",
    ]
    (tmp_path / "in").mkdir()
    for name in (*names, "n" * 251 + ".gif"):
        (tmp_path / "in" / name).write_bytes(data)
    results = restore_files([tmp_path / "in"], tmp_path / "out", Darker(channels=1), tile=512)
    assert {result.target.name for result in results} == {*names, "n" * 251 + ".png"}
    scan = tmp_path / ("s" * 250 + ".001")  # its output has four characters more
    scan.write_bytes(data)
    ((_, target),) = plan([scan], tmp_path / "out")
    restore_files([scan], tmp_path / "out", Darker(channels=1))
    assert target.is_file()
    assert target.suffix == ".png"


def test_an_output_is_not_replaced_by_another_one_of_the_same_call(folder: Path, tmp_path: Path) -> None:
    """As where the file system of the output knows no case; here two folders of it are one."""
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (folder / "deep2").mkdir()
    (folder / "deep2" / "c.tif").write_bytes((folder / "deep" / "c.tif").read_bytes())
    (tmp_path / "out" / "deep2").symlink_to("deep")
    with pytest.raises(UserError, match="would both become"):
        restore_files([folder], tmp_path / "out", Darker())


def test_the_output_inside_the_input_is_not_restored_again(folder: Path) -> None:
    first = restore_files([folder], folder / "restored", Darker())
    again = restore_files([folder], folder / "restored", Darker())
    assert [result.target for result in again] == [result.target for result in first]
    assert len(again) == 4


def test_grey_and_colour_meet_any_denoiser(folder: Path, tmp_path: Path) -> None:
    restore_files([folder], tmp_path / "out", Darker(channels=1))
    np.testing.assert_array_equal(
        read_image(tmp_path / "out" / "b.png").pixels, darker(read_image(folder / "b.png").pixels)
    )


# Broken images


def test_a_broken_image_stops_with_its_name(folder: Path, tmp_path: Path) -> None:
    truncate(folder / "b.png")
    with pytest.raises(UserError, match=r"in/b\.png does not decode"):
        restore_files([folder], tmp_path / "out", Darker())
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a.JPG"]  # what came before it, whole


def test_a_file_that_is_no_image_stops_before_any_work(folder: Path, tmp_path: Path) -> None:
    (folder / "z.png").write_text("no image")
    with pytest.raises(UserError, match=r"z\.png does not decode"):
        restore_files([folder], tmp_path / "out", Darker())
    assert not (tmp_path / "out").exists()


def test_keep_going_restores_the_others_and_fails_at_the_end(folder: Path, tmp_path: Path) -> None:
    truncate(folder / "b.png")
    (folder / "deep" / "c.tif").write_text("no image")
    with pytest.raises(UserError, match="2 of 4 images could not be restored") as caught:
        restore_files([folder], tmp_path / "out", Darker(), keep_going=True)
    assert "b.png does not decode" in str(caught.value)
    assert "c.tif does not decode" in str(caught.value)
    names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["a.JPG", "d.webp"]


def test_wrong_options_are_no_broken_images(folder: Path, tmp_path: Path) -> None:
    for options in ({"level": 25.0}, {"tile": 32, "overlap": 64}):
        with pytest.raises(UserError, match="expected"):
            restore_files([folder], tmp_path / "out", Darker(), keep_going=True, **options)
        assert not (tmp_path / "out").exists()


def test_alpha_is_not_lost_in_a_jpeg(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transparency"):
        restore_files([folder / "deep" / "c.tif"], tmp_path / "c.jpg", Darker())
    assert not (tmp_path / "c.jpg").exists()


# Reading and writing beside computing


IMAGES = 6


@pytest.fixture
def row(photographs: Path, tmp_path: Path) -> Path:
    """A folder of six images that differ, each a single tile of ``Darker``."""
    pixels = read_image(photographs / "chelsea.png").pixels
    (tmp_path / "row").mkdir()
    for index in range(IMAGES):
        write_image(tmp_path / "row" / f"{index}.png", DecodedImage(pixels[index * 40 : index * 40 + 30 + index, :64]))
    return tmp_path / "row"


def around(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[int], object]) -> None:
    """Call ``before`` with the index of an image of the row whenever ``read_image`` or ``write_image`` begins."""
    function = getattr(io, name)

    def wrapped(path: Path, *args: object) -> object:
        before(int(path.stem))
        return function(path, *args)

    monkeypatch.setattr(io, name, wrapped)


def decoded_images() -> int:
    return sum(type(thing) is DecodedImage for thing in gc.get_objects())


def assert_restored(row: Path, out: Path, indices: Iterable[int]) -> None:
    """Check that just these images are in ``out``, whole, and nothing half-written beside them."""
    names = [f"{index}.png" for index in indices]
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == names
    for name in names:
        np.testing.assert_array_equal(read_image(out / name).pixels, darker(read_image(row / name).pixels))


def test_the_next_image_is_read_and_the_one_before_written_while_one_is_computed(
    row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, computing = ([threading.Event() for _ in range(IMAGES + 1)] for _ in range(2))
    reading[IMAGES].set()
    computing[IMAGES].set()
    turns = iter(range(IMAGES))
    waited: list[bool] = []

    def compute() -> None:
        index = next(turns)
        computing[index].set()
        waited.append(reading[index + 1].wait(20))

    around(monkeypatch, "read_image", lambda index: reading[index].set())
    around(monkeypatch, "write_image", lambda index: waited.append(computing[index + 1].wait(20)))
    restore_files([row], tmp_path / "out", Darker(before=compute))
    assert waited == [True] * 2 * IMAGES
    assert_restored(row, tmp_path / "out", range(IMAGES))


@pytest.mark.parametrize(("pixels", "most"), [(files.PIXELS_BESIDE, 4), (0, 2)])
@pytest.mark.parametrize("slow", ["read_image", "write_image"])
def test_a_slow_disk_changes_neither_order_nor_memory(
    row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, pixels: int, most: int
) -> None:
    """At most: one written, one computed and its result, one read ahead; of large images one and its result."""
    monkeypatch.setattr(files, "PIXELS_BESIDE", pixels)
    gc.collect()  # images of earlier tests, which tracebacks hold in circles
    earlier, counts = decoded_images(), []
    around(monkeypatch, "write_image", lambda index: counts.append(decoded_images() - earlier))
    around(monkeypatch, slow, lambda index: time.sleep(0.1 * (index % 2)))
    results = restore_files([row], tmp_path / "out", Darker(before=lambda: counts.append(decoded_images() - earlier)))
    assert [result.source.name for result in results] == [f"{index}.png" for index in range(IMAGES)]
    assert [result.target for result in results] == [tmp_path / "out" / result.source.name for result in results]
    assert 2 <= max(counts) <= most
    assert_restored(row, tmp_path / "out", range(IMAGES))


def test_a_broken_image_is_told_after_the_one_before_it_is_written(
    row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate(row / "3.png")
    around(monkeypatch, "write_image", lambda index: time.sleep(0.1))
    with pytest.raises(UserError, match=r"3\.png does not decode"):
        restore_files([row], tmp_path / "out", Darker())
    assert_restored(row, tmp_path / "out", range(3))
    with pytest.raises(UserError, match=r"1 of 6 images could not be restored, 5 are in .*3\.png does not decode"):
        restore_files([row], tmp_path / "out", Darker(), keep_going=True)
    assert_restored(row, tmp_path / "out", (0, 1, 2, 4, 5))


@pytest.mark.parametrize("keep_going", [False, True])
def test_an_output_that_cannot_be_written_stops_there(row: Path, tmp_path: Path, keep_going: bool) -> None:
    """It comes before the broken image behind it, which is read before it is written."""
    truncate(row / "3.png")
    (tmp_path / "out" / "2.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*2\.png: is a directory"):
        restore_files([row], tmp_path / "out", Darker(), keep_going=keep_going)
    assert_restored(row, tmp_path / "out", range(2))


def test_ctrl_c_leaves_whole_files_and_no_thread(row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, turns = threading.active_count(), iter(range(IMAGES))
    around(monkeypatch, "write_image", lambda index: time.sleep(0.2))

    def interrupt_the_third() -> None:
        if next(turns) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    # Tests that run in the background inherit that Ctrl-C is ignored.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            restore_files([row], tmp_path / "out", Darker(before=interrupt_the_third))
    finally:
        signal.signal(signal.SIGINT, heard)
    assert threading.active_count() == threads
    assert_restored(row, tmp_path / "out", range(2))


# What is refused before any work


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (lambda f: [], "out", "nothing to restore"),
        (lambda f: [f / "none.png"], "out", r"none\.png does not exist"),
        (lambda f: [f / "b.png"], "out.gif", r"out\.gif.*extension"),
        (lambda f: [f / "b.png"], "out.jp2", r"out\.jp2.*extension"),
        (lambda f: [f / "b.png", f / "a.JPG"], "out.png", "no folder"),
        (lambda f: [f], "out.png", "no folder"),
        (lambda f: [f], "in/b.png", "no folder"),
        (lambda f: [f / "b.png"], "in/b.png", "itself an input"),
        (lambda f: [f / "b.png"], "in", "itself an input"),
        (lambda f: [f], "in", "itself an input"),
        (lambda f: [f / "a.JPG", f / "b.png"], "in/../in", "itself an input"),
        (lambda f: [f / "b.png"], "in/notes.txt/out", "no folder that may be written"),
        (lambda f: [f / "b.png"], "in/notes.txt/out/b.png", "no folder that may be written"),
        (lambda f: [f / "empty"], "out", "holds no image"),
    ],
)
def test_refused_before_any_work(
    folder: Path, tmp_path: Path, inputs: Callable[[Path], list[Path]], output: str, words: str
) -> None:
    (folder / "empty").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=words):
        restore_files(inputs(folder), tmp_path / output, Darker())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


def test_two_inputs_of_one_name(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / "b.png").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(UserError, match="would both become"):
        restore_files([folder / "b.png", folder / "deep"], tmp_path / "out", Darker())
    (folder / "b.gif").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(UserError, match="would both become"):
        restore_files([folder], tmp_path / "out", Darker())
    assert not (tmp_path / "out").exists()


def test_an_input_behind_a_link_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(folder / "b.png")
    (tmp_path / "hard.png").hardlink_to(folder / "b.png")
    for name in ("link.png", "hard.png"):
        with pytest.raises(UserError, match="itself an input"):
            restore_files([folder / "b.png"], tmp_path / name, Darker())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(UserError, match="may be written"):
        restore_files([folder], tmp_path / "out", Darker())


def test_an_older_output_is_replaced(folder: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "out.png", DecodedImage(np.zeros((3, 3, 3), np.uint8)))
    restore_files([folder / "b.png"], tmp_path / "out.png", Darker())
    assert read_image(tmp_path / "out.png").pixels.shape == (70, 101, 3)


def test_what_is_no_file_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("pipe.png", "loop.png"):
        with pytest.raises(UserError, match="neither a file nor a folder"):
            restore_files([tmp_path / name], tmp_path / "out", Darker())
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot make the folder"):
        restore_files([folder], tmp_path / "loop", Darker())
