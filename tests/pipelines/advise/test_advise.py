"""``denoise advise``: folders of images with one kind of noise each, and the method that is named for it."""

import html
import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

SIGMA = 20 / 255


def shaded(number):
    """A clean image with one edge, (H, W, 3) in [0, 1]."""
    y, x = np.mgrid[:220, :280] / 220
    shade = 0.2 + 0.5 * (np.sin(2 * x + y + number) + 1) / 2 + 0.1 * (x + y > 1 + 0.1 * number)
    return np.stack([shade, 0.9 * shade, 0.8 * shade], -1)


def white(clean, rng):
    return clean + SIGMA * rng.normal(size=clean.shape)


def poisson(clean, rng):
    return rng.poisson(clean * 30) / 30


def blurred(clean, rng):
    noise = rng.normal(size=clean.shape)
    noise = sum(np.roll(noise, (dy, dx), (0, 1)) for dy in range(2) for dx in range(2)) / 2
    return clean + SIGMA * noise


def rows(clean, rng):
    return clean + SIGMA * rng.normal(size=(clean.shape[0], 1, 3))


def grey(clean, rng):
    return white(clean[..., :1], rng)[..., 0]


def nothing(clean, rng):
    return clean


def write(folder, noise, count=6, end="", suffix=".png", seed=0):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = noise(shaded(number), np.random.default_rng(seed + number))
        image = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
        image.save(folder / f"im{number}{end}{suffix}", quality=60)


@pytest.fixture
def advise(tmp_path, monkeypatch, denoise_fork):
    """A function that runs the command on the folder ``mine`` and returns its JSON document."""

    monkeypatch.chdir(tmp_path)

    def run(*options, folder="mine", code=0):
        done = subprocess.run([*denoise_fork, "advise", folder, *options], capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.mark.parametrize(
    ("noise", "method", "option"),
    [
        (white, "ssdn", "data.colour=rgb method.sigma=constant"),
        (grey, "ssdn", "data.colour=grey method.sigma=constant"),
        (poisson, "nb2nb", "data.colour=rgb"),
        (blurred, "atbsn", "data.colour=rgb method.hole=3"),
        (rows, "n2v", "method.structure=h method.structure_size=11"),
        (nothing, None, None),
    ],
)
def test_the_method_for_each_noise(tmp_path, advise, noise, method, option):
    write(tmp_path / "mine", noise)
    found = json.loads(advise("--json").stdout)
    assert found["method"] == method
    assert found["samples"] == found["measured_images"] == 6
    assert found["stripes"] == ("rows" if noise is rows else None)
    assert bool(found["unfit"]) == (noise in (blurred, rows, poisson))
    if method:
        assert option in found["commands"][1]
    else:
        assert found["commands"] == []


def test_the_printed_commands_train_and_restore(tmp_path, advise, denoise_fork):

    write(tmp_path / "mine", poisson)
    text = advise().stdout
    commands = [line.strip() for line in text.splitlines() if line.startswith("    denoise")]
    assert len(commands) == 3
    small = ["train.steps=4", "train.eval_every=4", "ray.workers=1"]
    for command in commands:
        words = shlex.split(command)[1:]
        extra = small if words[0] == "train" else []
        done = subprocess.run([*denoise_fork, *words, *extra], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "restored").iterdir())) == 6


def test_pairs_and_clean_images_decide_first(tmp_path, advise):
    write(tmp_path / "mine", blurred, end="_noisy")
    write(tmp_path / "mine", blurred, end="_noisy2", seed=50)
    found = json.loads(advise("--json").stdout)
    assert (found["samples"], found["pairs"], found["method"]) == (6, 6, "n2n")
    assert found["correlation"][1][8] > 0.2
    write(tmp_path / "mine", nothing, end="_clean")
    found = json.loads(advise("--json").stdout)
    assert (found["samples"], found["clean"], found["method"]) == (6, 6, "n2c")
    assert found["sigma"] == pytest.approx(SIGMA, rel=0.15)  # of the noisy ones alone


def test_the_frames_of_a_burst_are_pairs(tmp_path, advise, photographs):
    scene = np.asarray(Image.open(photographs / "coffee.png"))[:300, :360] / 255
    write(tmp_path / "mine", lambda clean, rng: blurred(scene, rng))
    found = json.loads(advise("--json").stdout)
    assert (found["pairs"], found["series"], found["method"]) == (0, True, "n2n")
    assert found["commands"][1].endswith("data.pairs=next --out models/mine")
    write(tmp_path / "mine", lambda clean, rng: np.roll(blurred(scene, rng), 3 * rng.integers(20), 1))
    assert not json.loads(advise("--json").stdout)["series"]


def test_few_images_and_jpeg(tmp_path, advise):
    write(tmp_path / "mine", white, count=2, suffix=".jpg")
    text = advise().stdout
    assert "take mash: 2 images are too few to train on" in text  # JPEG has correlated the noise
    assert "warning: the images show the blocks of JPEG" in text


def test_a_few_images_need_no_training(tmp_path, advise):
    write(tmp_path / "mine", white, count=2)
    found = json.loads(advise("--json").stdout)
    assert found["method"] == "zs_n2n"
    assert found["commands"] == ["denoise restore mine -o restored --model zs_n2n"]


def test_a_sample_of_a_large_folder_is_measured(tmp_path, advise):
    write(tmp_path / "mine", white, count=9)
    done = advise("--images", "4", "--json")
    assert json.loads(done.stdout)["measured_images"] == 3  # every third
    assert "measure noise" in done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "mine is not a folder"),
        (lambda folder: folder.mkdir(), "no images below mine"),
        (lambda folder: write(folder, lambda clean, rng: clean[:20, :20]), "hold 0 blocks of 24x24 pixels"),
        (lambda folder: write(folder, lambda clean, rng: 0 * clean), "nearly all of the images lies at the ends"),
    ],
)
def test_folders_that_cannot_be_measured(tmp_path, advise, make, message):
    make(tmp_path / "mine")
    done = advise(code=1)
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_broken_image_is_named(tmp_path, advise):
    write(tmp_path / "mine", white)
    shutil.copy(__file__, tmp_path / "mine" / "im3.png")
    assert "im3.png" in advise(code=1).stderr


def test_the_page_draws_what_was_measured(tmp_path, advise):
    write(tmp_path / "mine", blurred)
    text = advise("--page", "noise.html").stdout
    page = (tmp_path / "noise.html").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("    denoise"):
            assert html.escape(line.strip(), quote=False) in html.unescape(page).replace("&", "&amp;")
    assert page.count("<rect") == 17 * 17
    assert page.count("data:image/png;base64,") == 3  # images with the blocks that were taken
    assert "0 down, 0 across: 1.00" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)  # it needs no other file


def test_a_quick_training_shows_an_image_before_and_after(tmp_path, monkeypatch):
    from pipelines.advise.advice import advise
    from pipelines.advise.folder import measure_folder
    from pipelines.advise.trial import try_advice
    from pipelines.training import speed

    monkeypatch.setattr(speed, "WARM_UP", 0.1)
    monkeypatch.setattr(speed, "MEASURED", 0.3)
    write(tmp_path / "mine", poisson)
    found = measure_folder(tmp_path / "mine", 4)
    before, after = try_advice(found, advise(tmp_path / "mine", found), 0.05)
    assert before.title == "im0.png, noisy"
    assert re.fullmatch(r"restored by nb2nb, \d+ steps", after.title)
    assert (before.width, before.height) == (after.width, after.height) == (280, 220)
    assert before.source != after.source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (white, ["--try", "1"], "--try shows an image before and after on the page, but there is none"),
        (nothing, ["--try", "1", "--page", "noise.html"], "there is nothing to try: there is hardly any noise"),
    ],
)
def test_nothing_to_try(tmp_path, advise, noise, options, message):
    write(tmp_path / "mine", noise)
    assert message in advise(*options, code=1).stderr


def test_the_planes_of_a_stack_are_measured_in_the_range_of_their_set(advise, tmp_path):
    (tmp_path / "mine").mkdir()
    frames = [grey(shaded(number), np.random.default_rng(number)) for number in range(6)]
    counts = (400 + 3000 * np.stack(frames)).astype(np.float32)
    np.save(tmp_path / "mine" / "movie.npy", counts)
    found = json.loads(advise("--json").stdout)
    low, high = np.percentile(counts, (0.1, 99.9))
    assert found["channels"] == 1
    assert abs(found["sigma"] - SIGMA * 3000 / (high - low)) < 0.15 * SIGMA
