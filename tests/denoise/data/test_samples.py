"""Samples with fresh noise, with one fixed realisation, and of real pairs."""

import numpy as np
import pytest
import torch

from denoise.config import load_config
from denoise.data.crops import as_floats
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import Batching, batches
from denoise.data.sampler import GlobalSampler
from denoise.data.samples import CachedSamples, FreshNoise, RealNoise, evaluation_pair, make_views, open_samples
from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.images.io import DecodedImage, read_image, write_image
from denoise.images.noise_level import estimate_sigma
from denoise.images.tensors import to_tensor
from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.rng import batch_rng
from denoise.sharding.writer import write_shards
from denoise.stacks.options import StackOptions
from pipelines.datasets.shard import find_sources

pytestmark = pytest.mark.smoke

KEY = batch_rng(0, 0, torch.arange(1))
SAMPLER = GlobalSampler(0, (5,), "digest")


@pytest.fixture(scope="module")
def fresh(small_shards):
    return ShardedDataset([Shards.open(small_shards)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, photographs):
    """Real images standing in for a noisy one, a second observation, a clean one, and a mean of exposures."""
    folder = tmp_path_factory.mktemp("pairs")
    pixels = read_image(photographs / "coffee.png").pixels[:120, :140]
    rng = np.random.default_rng(0)
    noisy = [np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    for name, image in (("a_noisy", noisy[0]), ("a_noisy2", noisy[1]), ("a_clean", pixels)):
        write_image(folder / f"{name}.png", DecodedImage(image))
    for name, image in (("b_real", noisy[1]), ("b_mean", pixels), ("c", noisy[0])):
        write_image(folder / f"{name}.png", DecodedImage(image))
    write_shards(folder / "shards", find_sources(folder), 1 << 30)
    return ShardedDataset([Shards.open(folder / "shards")])


def samples_of(images, method="n2n", *overrides, noise="gauss25"):
    config = load_config(None, [f"method={method}", f"noise={noise}", *overrides])
    return open_samples(config, images, build_method(method, {}, parse_noise(noise)), parse_noise(noise))


def test_fixed_noise_is_the_same_at_every_read(fresh):
    first, again = (samples_of(fresh, "n2n", "data.fixed_noise=true")[1] for _ in range(2))
    assert set(first) == {"noisy", "noisy2", "mask", "mask2"}
    assert all(torch.equal(first[view], again[view]) for view in first)
    other = samples_of(fresh, "n2n", "data.fixed_noise=true", "seed=1")[1]
    assert not torch.equal(first["noisy"], other["noisy"])
    assert not torch.equal(first["noisy"], first["noisy2"])


def test_fixed_noise_stays_with_its_pixel_whatever_the_crop(fresh):
    samples = samples_of(fresh, "n2c", "data.fixed_noise=true")
    noise = samples[0]["noisy"] - samples[0]["clean"]
    assert noise.std() == pytest.approx(25 / 255, rel=0.03)
    stream = batches(samples, SAMPLER, Batching(0, 4, 32, 3), 0, 1, 0)
    crops = next(stream).views
    stream.close()
    assert set(crops) == {"noisy", "clean"}
    cropped = crops["noisy"][0] - crops["clean"][0]
    noises = [samples[index]["noisy"] - samples[index]["clean"] for index in range(len(samples))]
    windows = [whole.unfold(1, 32, 1).unfold(2, 32, 1) for whole in noises]
    assert any((places - cropped[:, None, None]).abs().amax(dim=(0, 3, 4)).min() < 1e-6 for places in windows)


def test_fixed_noise_needs_no_clean_image_of_a_self_supervised_method(fresh):
    assert set(samples_of(fresh, "n2v", "data.fixed_noise=true")[0]) == {"noisy", "mask"}


def test_fresh_noise_is_added_to_the_clean_image_in_the_step(fresh):
    method, noise = build_method("n2v", {}, parse_noise("gauss25")), parse_noise("gauss25")
    stream = batches(samples_of(fresh, "n2v"), SAMPLER, Batching(0, 4, 32, 3), 0, 1, 0)
    views = make_views(
        {name: as_floats(view) for name, view in next(stream).views.items()},
        method,
        noise,
        batch_rng(0, 0, torch.arange(4)),
    )
    stream.close()
    assert set(views) == {"noisy", "mask"}


def test_real_pairs_give_the_views_they_have(pairs):
    a = samples_of(pairs, "n2n", noise="none")[0]
    assert set(a) == {"noisy", "noisy2", "mask", "mask2"}
    assert np.array_equal(a["noisy2"], pairs.pixels(0, "noisy2"))
    assert np.array_equal(samples_of(pairs, "n2c", noise="none")[0]["clean"], pairs.pixels(0, "clean"))
    b = samples_of(pairs, "n2n", noise="none")[1]
    assert np.array_equal(b["noisy2"], pairs.pixels(1, "mean"))  # the mean of many exposures is an observation too
    assert np.array_equal(samples_of(pairs, "n2v", noise="none")[2]["noisy"], pairs.pixels(2, "clean"))


def test_a_clean_image_is_never_a_second_observation(pairs, tmp_path, photographs):
    for name in ("x_noisy", "x_clean"):
        (tmp_path / f"{name}.png").write_bytes((photographs / "coffee.png").read_bytes())
    write_shards(tmp_path / "shards", find_sources(tmp_path), 1 << 30)
    images = ShardedDataset([Shards.open(tmp_path / "shards")])
    with pytest.raises(UserError, match="x.png has no image noisy2 or mean"):
        samples_of(images, "n2n", noise="none")[0]


def test_a_single_image_cannot_train_a_method_that_needs_two(pairs):
    with pytest.raises(UserError, match="c.png has no image noisy2 or mean .* such as n2v"):
        samples_of(pairs, "n2n", noise="none")[2]


def test_the_level_of_real_noise_is_estimated_from_the_noisy_image(pairs):
    sample = samples_of(pairs, "r2r", noise="none")[0]
    assert set(sample) == {"noisy", "level"}
    assert sample["level"].item() == pytest.approx(estimate_sigma(to_tensor(pairs.pixels(0, "noisy"))))
    assert sample["level"].item() == pytest.approx(12 / 255, rel=0.15)
    smaller = RealNoise(pairs, {"level"}, 4)[0]["level"].item()
    assert smaller == pytest.approx(estimate_sigma(to_tensor(pairs.pixels(0, "noisy")), 4)) != sample["level"].item()
    pair = evaluation_pair(pairs, 0, parse_noise("none"), 3, KEY, patch=4)
    assert pair.level.item() == pytest.approx(smaller)


def test_real_pairs_are_evaluated_against_clean_or_mean(pairs):
    none = parse_noise("none")
    clean = [evaluation_pair(pairs, index, none, 3, KEY).clean for index in range(3)]
    assert torch.equal(clean[0][0], to_tensor(pairs.pixels(0, "clean")))
    assert torch.equal(clean[1][0], to_tensor(pairs.pixels(1, "mean")))
    assert clean[2] is None


def test_evaluation_pairs_of_subsampled_images_are_smaller(fresh):
    pair = evaluation_pair(fresh, 0, parse_noise("subsample8"), 3, KEY)
    height, width = to_tensor(fresh.pixels(0, "clean")).shape[1:]
    assert pair.noisy.shape == pair.clean.shape == (1, 3, height // 8, width // 8)


def test_the_cache_respects_its_budget_and_never_changes_an_image(fresh):
    size = fresh.pixels(0, "clean").nbytes
    cache = CachedSamples(FreshNoise(fresh), 2 * size + 10_000)
    for _ in range(3):
        for index in range(len(fresh)):
            assert np.array_equal(cache[index]["image"], fresh.pixels(index, "clean"))
            assert cache.size <= cache.budget
    assert 1 <= len(cache.samples) < len(fresh)


@pytest.fixture
def frames(tmp_path):
    """Two bursts of three and two frames, and an image alone."""
    for number, name in enumerate(["a/0", "a/1", "a/2", "b/0", "b/1", "single/0"]):
        file = tmp_path / "raw" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image(file, DecodedImage(np.full((40, 50 + 10 * (number > 2), 1), 40 * number, np.uint8)))
    write_shards(tmp_path / "shards", find_sources(tmp_path / "raw"), 1 << 30)
    return ShardedDataset([Shards.open(tmp_path / "shards")])


def test_the_second_image_is_the_next_frame_of_the_same_folder(frames):
    samples = samples_of(frames, "n2n", "data.pairs=next", "data.colour=grey", noise="none")
    pairs = [samples[index] for index in range(5)]
    assert [int(pair["noisy"][0, 0, 0]) // 40 for pair in pairs] == [0, 1, 2, 3, 4]
    assert [int(pair["noisy2"][0, 0, 0]) // 40 for pair in pairs] == [1, 2, 1, 4, 3]
    assert all(set(pair) == {"noisy", "noisy2", "mask", "mask2"} for pair in pairs)
    with pytest.raises(UserError, match="single/0.png is the only image of its folder, but data.pairs=next"):
        samples[5]


def test_frames_of_two_sets_are_no_pair(frames):
    both = ShardedDataset([*frames.parts, *frames.parts])
    assert [both.neighbour(index) for index in (5, 6, 11)] == [None, 7, None]


def test_frames_of_two_sizes_are_refused(tmp_path):
    for name, side in (("0", 40), ("1", 50)):
        write_image(tmp_path / f"{name}.png", DecodedImage(np.zeros((side, 60, 1), np.uint8)))
    write_shards(tmp_path / "shards", find_sources(tmp_path), 1 << 30)
    images = ShardedDataset([Shards.open(tmp_path / "shards")])
    with pytest.raises(UserError, match="0.png is 60x40 and 1.png 60x50, but data.pairs=next takes"):
        samples_of(images, "n2n", "data.pairs=next", noise="none")[0]


def test_frames_that_get_noise_are_no_pairs(frames):
    with pytest.raises(UserError, match="data.pairs=next takes the noise that images have, but noise=gauss25 adds"):
        samples_of(frames, "n2n", "data.pairs=next")


@pytest.mark.parametrize(
    ("axes", "shape", "partners"),
    [
        ("TYX", (3,), [1, 2, 1]),
        ("TCYX", (2, 3), [3, 4, 5, 0, 1, 2]),
        ("ZTYX", (2, 2), [1, 0, 3, 2]),
        ("ZYX", (2,), [1, 0]),
    ],
)
def test_planes_of_successive_times_are_pairs(tmp_path, axes, shape, partners):
    (tmp_path / "own").mkdir()
    np.save(
        tmp_path / "own" / "movie.npy", np.zeros((*shape, 8, 9), np.float32) + np.linspace(0, 1, 9, dtype=np.float32)
    )
    sources = find_sources(tmp_path / "own", StackOptions(axes=axes))
    write_shards(tmp_path / "shards", sources, 1 << 30)
    images = ShardedDataset([Shards.open(tmp_path / "shards")])
    assert [images.neighbour(index) for index in range(len(images))] == partners
