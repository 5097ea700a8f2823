import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.rng import Rng, batch_rng

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
