"""The error measured with a second observation: unbiased whatever the levels and correlations of the two."""

import math

import pytest
import torch

from denoise.noise import parse_noise
from denoise.quality import pair_error
from tests.denoise.quality.test_sure import key, scene, smooth


@pytest.mark.parametrize(
    ("first", "second"), [("gauss25", "gauss25"), ("gauss15", "gauss40"), ("corr25_0.8", "poisson30")]
)
def test_it_is_unbiased(first: str, second: str) -> None:
    clean, differences, truths, stated = scene(), [], [], []
    for number in range(20):
        noisy = (
            parse_noise(first).corrupt(clean[None], key(number)).noisy[0],
            parse_noise(second).corrupt(clean[None], key(100 + number)).noisy[0],
        )
        restored = (smooth(noisy[0]), smooth(noisy[1]))
        truths.append(sum((image - clean).square().mean().item() for image in restored) / 2)
        found = pair_error(noisy, restored)
        differences.append(found.mse - truths[-1])
        stated.append(found.standard_error)
    scatter = torch.tensor(differences).std().item()
    assert abs(sum(differences) / 20) < 3 * scatter / math.sqrt(20)
    assert scatter < 0.1 * sum(truths) / 20
    assert scatter / 2 < sum(stated) / 20 < 2.5 * scatter


def test_an_identity_has_the_error_of_the_noise() -> None:
    clean = scene()
    noisy = (clean + 0.1 * key(0).normal(*clean.shape)[0], clean + 0.1 * key(1).normal(*clean.shape)[0])
    assert pair_error(noisy, noisy).mse == pytest.approx(0.01, rel=0.05)
