import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.rng import CACHED_COUNT, Rng, batch_rng

pytestmark = pytest.mark.smoke

LARGE = 400_000


def draw(seed: int = 0, step: int = 0, positions: tuple[int, ...] = (0,)) -> Rng:
    return batch_rng(seed, step, torch.tensor(positions))


def test_splitmix64_reference_values():
    # The first outputs of Vigna's splitmix64.c for state 1234567.
    from denoise.rng import GOLDEN, _mix

    outputs = _mix(1234567 + torch.arange(1, 6) * GOLDEN)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in outputs.tolist()] == expected


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 6), st.data())
def test_any_slice_of_the_batch_draws_what_the_whole_batch_draws(seed, step, size, data):
    cut = data.draw(st.integers(0, size))
    whole = batch_rng(seed, step, torch.arange(size)).normal(3, 4, 4)
    parts = [batch_rng(seed, step, torch.arange(size)[part]).normal(3, 4, 4) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(whole, torch.cat(parts))


# sha256 of draws as version 0.1.0 made them, by the key and what is drawn: models and checkpoints rest on them.
KEYS = {
    "first": (0, 0, [0]),
    "batch": (3, 17, [0, 1, 2, 3]),
    "rank": (2**31 - 1, 10**6, [5, 900, 2**40]),
    "fixed": (7, -2, [12]),
    "steps": (5, torch.tensor([1, 1, 2, 2]), [0, 1, 0, 1]),
}
DRAWS = {
    "bits": lambda rng: rng.bits(1000),
    "uniform": lambda rng: rng.stream("lost").uniform(1, 64, 64),
    "integers": lambda rng: rng.stream("noisy").stream("text").integers(2**62, 1),
    "small integers": lambda rng: rng.stream("method").stream("pairs").integers(8, 32, 32),
    "pass": lambda rng: rng.stream("pass 3 rotated").stream("noise").uniform(4, 4),
}
RECORDED = {
    ("first", "bits"): "cc73f64064d78f7a",
    ("first", "uniform"): "e555be99851c40d4",
    ("first", "integers"): "4e330e40c5550125",
    ("first", "small integers"): "f88e6e8b7a4f96d1",
    ("first", "pass"): "62857b6c1602206e",
    ("batch", "bits"): "f83a673b01fa8feb",
    ("batch", "uniform"): "88b20b1f86475d52",
    ("batch", "integers"): "9caa8d6a710ac9c8",
    ("batch", "small integers"): "02975785f11cbaa0",
    ("batch", "pass"): "b2cb0e7c9b0c4723",
    ("rank", "bits"): "debbdbcf8da4d914",
    ("rank", "uniform"): "163feecbc5842bf6",
    ("rank", "integers"): "f2c5444ad6b754d8",
    ("rank", "small integers"): "2dd8007a9a41eeeb",
    ("rank", "pass"): "f08f0c2e444f56e9",
    ("fixed", "bits"): "eebee6d5821691e1",
    ("fixed", "uniform"): "a821f1e7f70bf8ec",
    ("fixed", "integers"): "df14540ba3f30ce3",
    ("fixed", "small integers"): "2bbbe2deb78e766f",
    ("fixed", "pass"): "a93047251ffa2db8",
    ("steps", "bits"): "1552ebba940653ac",
    ("steps", "uniform"): "b1470e2f5f98ac6b",
    ("steps", "integers"): "9b2b13ce6af6c7f8",
    ("steps", "small integers"): "4edb8b037f26284c",
    ("steps", "pass"): "1d464651feddd3e6",
}


@pytest.mark.parametrize(("key", "what"), RECORDED)
def test_the_numbers_of_a_key_never_change(key, what):
    seed, step, positions = KEYS[key]
    numbers = DRAWS[what](batch_rng(seed, step, torch.tensor(positions))).numpy()
    assert hashlib.sha256(numbers.tobytes()).hexdigest()[:16] == RECORDED[key, what]


def test_normal_numbers_of_a_key_never_change():
    # Logarithms and cosines may differ in the last digit from processor to processor.
    drawn = draw(3, 17, (2,)).stream("noise").normal(5).flatten()
    torch.testing.assert_close(
        drawn, torch.tensor([-0.4273498, 1.2046262, 1.6121556, 1.2074489, -0.9489340]), rtol=1e-5, atol=1e-6
    )


def test_a_long_draw_is_the_same_as_a_cached_one():
    rng = draw(1, 2, (3, 4))
    assert torch.equal(rng.bits(CACHED_COUNT + 1)[:, :CACHED_COUNT], rng.bits(CACHED_COUNT))
    with torch.inference_mode():
        inside = rng.bits(77)
    assert torch.equal(rng.bits(77), inside)


def test_numbers_are_drawn_on_the_device_that_is_asked_for():
    positions = torch.arange(2)
    assert batch_rng(0, 0, positions).normal(3).device.type == "cpu"
    assert batch_rng(0, 0, positions, "meta").stream("noise").normal(3).device.type == "meta"
    assert torch.equal(batch_rng(0, 0, positions, "meta").on("cpu").bits(3), batch_rng(0, 0, positions).bits(3))


def test_every_part_of_the_key_matters():
    draws = [draw(*key).bits(4) for key in [(0, 0, (0,)), (1, 0, (0,)), (0, 1, (0,)), (0, 0, (1,))]]
    draws += [draw().stream(name).bits(4) for name in ("noise", "crop")]
    assert len({tuple(bits.flatten().tolist()) for bits in draws}) == len(draws)


def test_swapping_seed_and_step_gives_other_numbers():
    assert not torch.equal(draw(3, 7).bits(8), draw(7, 3).bits(8))


def test_a_draw_is_a_pure_function():
    rng = draw(5, 6, (1, 2))
    assert torch.equal(rng.normal(100), rng.normal(100))
    assert torch.equal(rng.stream("a").uniform(100), rng.stream("a").uniform(100))


def test_a_longer_draw_starts_with_the_shorter_one():
    rng = draw()
    assert torch.equal(rng.uniform(10), rng.uniform(1000)[:, :10])


def test_uniform_is_uniform():
    values = draw(1).uniform(LARGE).flatten().numpy()
    assert 0 <= values.min()
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=100, range=(0, 1))
    chi_square = ((counts - LARGE / 100) ** 2 / (LARGE / 100)).sum()
    assert chi_square < 149.4  # 99.9 % quantile at 99 degrees of freedom


def test_normal_is_standard_normal():
    from scipy import stats

    values = draw(2).normal(LARGE).flatten().numpy()
    assert abs(values.mean()) < 4 / LARGE**0.5
    assert abs(values.std() - 1) < 4 / (2 * LARGE) ** 0.5
    assert stats.kstest(values, "norm").pvalue > 1e-3


def test_samples_streams_and_neighbours_are_uncorrelated():
    values = batch_rng(0, 0, torch.arange(2)).normal(LARGE)
    other = batch_rng(0, 0, torch.arange(2)).stream("other").normal(LARGE)
    table = torch.stack([values[0], values[1], other[0], values[0].roll(1), values[0].roll(LARGE // 2)])
    off_diagonal = torch.corrcoef(table) - torch.eye(5)
    assert off_diagonal.abs().max() < 5 / LARGE**0.5


def test_integers_cover_their_range_evenly():
    values = draw(3).integers(7, LARGE).flatten().numpy()
    counts = np.bincount(values, minlength=7)
    assert len(counts) == 7
    assert ((counts - LARGE / 7) ** 2 / (LARGE / 7)).sum() < 22.5  # 99.9 % quantile at 6 degrees of freedom


def test_shapes():
    rng = batch_rng(0, 0, torch.arange(5))
    assert rng.normal(3, 7, 5).shape == (5, 3, 7, 5)
    assert rng.uniform(1, 1, 1).shape == (5, 1, 1, 1)
    assert rng.integers(4, 2).shape == (5, 2)
