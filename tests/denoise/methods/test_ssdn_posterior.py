"""SSDN's formulas against explicit matrices, numbers worked out by hand, and integrals on a grid."""

import pytest
import torch

import denoise.methods.ssdn_posterior as posterior

PIXELS = 500
# scale of the prior's root A, sigma of the noise: from a wide prior to one that is all but certain, and to hardly noise
REGIMES = pytest.mark.parametrize(
    ("scale", "sigma"), [(1, 0.1), (0.1, 0.1), (1e-3, 0.1), (1e-6, 0.1), (1, 1e-3), (10, 1e-3), (1e-3, 1e-3)]
)
FORMS = pytest.mark.parametrize(("channels", "kind"), [(1, "full"), (1, "diagonal"), (3, "full"), (3, "diagonal")])


def raw_outputs(channels, kind, scale, seed=0):
    """Random outputs of a network, float32 as a network gives them: (1, outputs, 1, PIXELS)."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(1, posterior.output_count(channels, kind), 1, PIXELS, generator=generator)
    raw[:, channels:] *= scale
    raw[:, :channels] = 0.5 + 0.1 * raw[:, :channels]
    return raw


def observed(raw, channels, scale, sigma, seed=1):
    """Noisy values about as far from the mean as the two variances let expect."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, channels, 1, PIXELS, generator=generator)
    return raw[:, :channels] + (scale**2 + sigma**2) ** 0.5 * noise


def vectors(image):
    """(1, C, 1, P) -> (P, C)"""
    return image[0, :, 0].movedim(-1, 0).double()


def matrices(covariance):
    """(1, C, C, 1, P) -> (P, C, C)"""
    return covariance[0, :, :, 0].movedim(-1, 0).double()


def explicit(raw, channels, kind):
    """Means (P, C) and covariances (P, C, C) by matrix products of torch, entry by entry."""
    values = vectors(raw)
    a = torch.zeros(PIXELS, channels, channels, dtype=torch.float64)
    entry = channels
    for i in range(channels):
        for j in range(i, channels):
            if kind == "full" or i == j:
                a[:, i, j] = values[:, entry]
                entry += 1
    assert entry == values.shape[1]
    return values[:, :channels], a @ a.mT


def at(value, *shape):
    return torch.full(shape, value, dtype=torch.float64)


def test_the_number_of_outputs_is_that_of_the_paper():
    assert posterior.output_count(3, "full") == 9
    assert posterior.output_count(1, "full") == posterior.output_count(1, "diagonal") == 2
    assert posterior.output_count(3, "diagonal") == 6


@FORMS
@pytest.mark.parametrize("scale", [1, 1e-6])
def test_the_outputs_encode_a_mean_and_a_symmetric_positive_semidefinite_covariance(channels, kind, scale):
    raw = raw_outputs(channels, kind, scale)
    mean, covariance = posterior.moments(raw, channels, kind)
    expected_mean, expected = explicit(raw, channels, kind)
    assert torch.equal(vectors(mean), expected_mean)
    assert torch.allclose(matrices(covariance), expected, rtol=1e-12, atol=0)
    assert torch.equal(matrices(covariance), matrices(covariance).mT)
    assert torch.linalg.eigvalsh(matrices(covariance)).min() > -1e-14 * scale**2


def test_the_six_entries_are_those_of_the_published_code():
    a = [0.5, -0.25, 2.0, 1.5, -1.0, 0.75]
    _, covariance = posterior.moments(torch.tensor([0, 0, 0, *a]).view(1, 9, 1, 1), 3, "full")
    expected = [
        [a[0] ** 2 + a[1] ** 2 + a[2] ** 2, a[1] * a[3] + a[2] * a[4], a[2] * a[5]],
        [a[1] * a[3] + a[2] * a[4], a[3] ** 2 + a[4] ** 2, a[4] * a[5]],
        [a[2] * a[5], a[4] * a[5], a[5] ** 2],
    ]
    assert covariance[0, :, :, 0, 0].tolist() == expected


@FORMS
@REGIMES
def test_the_likelihood_agrees_with_explicit_matrices(channels, kind, scale, sigma):
    raw = raw_outputs(channels, kind, scale)
    y = observed(raw, channels, scale, sigma)
    mean, prior = posterior.moments(raw, channels, kind)
    actual = posterior.double_nll(y, mean, prior + posterior.diagonal(at(sigma**2, *mean.shape)))
    m, sx = explicit(raw, channels, kind)
    sy = sx + sigma**2 * torch.eye(channels, dtype=torch.float64)
    r = (vectors(y) - m)[:, :, None]
    expected = (r.mT @ torch.linalg.inv(sy) @ r)[:, 0, 0] + torch.linalg.slogdet(sy).logabsdet
    # 64-bit rounding (1.1e-16) times the largest condition number (1e8 here), with room for a few hundred operations
    assert torch.allclose(actual[0, 0], expected, rtol=1e-6, atol=1e-6)
    assert actual.shape == (1, 1, PIXELS)


@REGIMES
def test_the_gradient_of_the_likelihood_agrees_with_that_of_explicit_matrices(scale, sigma):
    raw = raw_outputs(3, "full", scale).requires_grad_()
    y = observed(raw, 3, scale, sigma).detach()
    mean, prior = posterior.moments(raw, 3, "full")
    posterior.double_nll(y, mean, prior + posterior.diagonal(at(sigma**2, *mean.shape))).sum().backward()
    actual, raw.grad = raw.grad, None
    m, sx = explicit(raw, 3, "full")
    distribution = torch.distributions.MultivariateNormal(m, sx + sigma**2 * torch.eye(3, dtype=torch.float64))
    (-2 * distribution.log_prob(vectors(y))).sum().backward()
    assert torch.allclose(actual, raw.grad, rtol=1e-4, atol=1e-5 * raw.grad.abs().max())


def test_one_channel_worked_out_by_hand():
    # y = 0.7, prior N(0.5, 0.03), noise 0.01: the sum of variances is 0.04 and the square of the difference 0.04.
    y, mean = at(0.7, 1, 1, 1, 1), at(0.5, 1, 1, 1, 1)
    prior, noise = at(0.03, 1, 1, 1, 1, 1), at(0.01, 1, 1, 1, 1, 1)
    assert posterior.double_nll(y, mean, prior + noise).item() == pytest.approx(1 - 3.2188758)  # 1 + log 0.04
    assert posterior.posterior_mean(y, mean, prior, noise).item() == pytest.approx(0.65)  # 0.5 + 3/4 of 0.2
    assert posterior.posterior_covariance(prior, noise).item() == pytest.approx(0.0075)  # 0.03 * 0.01 / 0.04


@FORMS
@REGIMES
def test_the_posterior_agrees_with_explicit_matrices(channels, kind, scale, sigma):
    raw = raw_outputs(channels, kind, scale)
    y = observed(raw, channels, scale, sigma)
    mean, prior = posterior.moments(raw, channels, kind)
    variance = sigma**2 * torch.linspace(1, 2, channels, dtype=torch.float64).view(1, channels, 1, 1).expand_as(mean)
    noise = posterior.diagonal(variance)
    m, sx = explicit(raw, channels, kind)
    sn = matrices(noise)
    gain = torch.linalg.solve(sx + sn, sx).mT  # Sx Sy^-1, both symmetric
    expected = m + (gain @ (vectors(y) - m)[:, :, None])[:, :, 0]
    assert torch.allclose(vectors(posterior.posterior_mean(y, mean, prior, noise)), expected, rtol=1e-7, atol=1e-9)
    covariance = matrices(posterior.posterior_covariance(prior, noise))
    smaller = min(scale**2, sigma**2)
    assert torch.allclose(covariance, sx - gain @ sx, rtol=1e-4, atol=1e-8 * smaller + 1e-13 * scale**2)
    assert torch.allclose(covariance, covariance.mT, rtol=0, atol=1e-9 * smaller)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-9 * smaller
    for upper in (sx, sn):  # what is known twice is known better
        assert torch.linalg.eigvalsh(upper - covariance).min() > -1e-8 * sigma**2 - 1e-14 * scale**2


def test_the_posterior_mean_is_that_of_the_published_form():
    raw = raw_outputs(3, "full", 1)
    y = observed(raw, 3, 1, 0.1)
    mean, prior = posterior.moments(raw, 3, "full")
    noise = posterior.diagonal(at(0.01, *mean.shape))
    tiny = 1e-6 * torch.eye(3, dtype=torch.float64)
    sx, sn = torch.linalg.inv(matrices(prior) + tiny), torch.linalg.inv(matrices(noise) + tiny)
    combined = sx @ vectors(mean)[:, :, None] + sn @ vectors(y)[:, :, None]
    published = (torch.linalg.inv(sx + sn + tiny) @ combined)[:, :, 0]
    # the published form adds 1e-6 I thrice: against a noise of 0.01 that is 1e-4 of a difference of order 1, at most
    assert (vectors(posterior.posterior_mean(y, mean, prior, noise)) - published).abs().max() < 5e-4


def test_a_certain_prior_keeps_its_mean_and_a_wide_one_gives_the_pixel():
    y, mean = at(0.9, 1, 3, 1, 1), at(0.2, 1, 3, 1, 1)
    noise = posterior.diagonal(at(0.01, 1, 3, 1, 1))
    certain, ignorant = (posterior.diagonal(at(variance, 1, 3, 1, 1)) for variance in (0.0, 1e6))
    assert torch.equal(posterior.posterior_mean(y, mean, certain, noise), mean)
    assert not posterior.posterior_covariance(certain, noise).any()
    assert torch.allclose(posterior.posterior_mean(y, mean, ignorant, noise), y, atol=1e-7)
    assert torch.allclose(posterior.posterior_covariance(ignorant, noise), noise, atol=1e-9)


def test_correlated_channels_inform_each_other():
    # Three channels that always agree are one value seen three times: its variance falls to 0.01 / 3.
    prior = torch.full((1, 3, 3, 1, 1), 1e4, dtype=torch.float64)
    noise = posterior.diagonal(at(0.01, 1, 3, 1, 1))
    y = torch.tensor([0.3, 0.4, 0.8], dtype=torch.float64).view(1, 3, 1, 1)
    restored = posterior.posterior_mean(y, torch.zeros_like(y), prior, noise)
    assert torch.allclose(restored, at(0.5, 1, 3, 1, 1), atol=1e-6)
    assert torch.allclose(posterior.posterior_covariance(prior, noise), at(0.01 / 3, 1, 3, 3, 1, 1), rtol=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_marginal_of_impulse_noise_has_the_published_moments(share):
    raw = raw_outputs(3, "full", 0.2)
    mean, prior = posterior.moments(raw, 3, "full")
    m, covariance = posterior.impulse_marginal(mean, prior, torch.full((1, 1, 1, 1), share, dtype=torch.float64))
    mu, sx = vectors(mean), matrices(prior)
    expected = 0.5 * share + (1 - share) * mu
    second = share * (torch.full((3, 3), 0.25, dtype=torch.float64) + torch.eye(3, dtype=torch.float64) / 12)
    second = second + (1 - share) * (sx + mu[:, :, None] * mu[:, None])
    assert torch.allclose(vectors(m), expected, rtol=1e-12)
    assert torch.allclose(
        matrices(covariance), second - expected[:, :, None] * expected[:, None], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_marginal_of_impulse_noise_is_that_of_a_mixture_integrated_on_a_grid(share):
    grid = torch.linspace(-1, 2, 300_001, dtype=torch.float64)
    normal = torch.distributions.Normal(at(0.3, 1), at(0.02**0.5, 1))
    density = share * ((grid > 0) & (grid < 1)) + (1 - share) * normal.log_prob(grid).exp()
    density = density / density.sum()
    mean = (density * grid).sum()
    variance = (density * (grid - mean).square()).sum()
    m, covariance = posterior.impulse_marginal(at(0.3, 1, 1, 1, 1), at(0.02, 1, 1, 1, 1, 1), at(share, 1, 1, 1, 1))
    assert m.item() == pytest.approx(mean.item(), rel=1e-4)
    assert covariance.item() == pytest.approx(variance.item(), rel=1e-4)


@pytest.mark.parametrize("y", [0.05, 0.3, 0.55, 0.98])
@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_posterior_of_impulse_noise_is_an_integral_on_a_grid(share, y):
    grid = torch.linspace(-1, 2, 300_001, dtype=torch.float64)
    prior = torch.distributions.Normal(at(0.3, 1), at(0.02**0.5, 1)).log_prob(grid).exp()
    sharp = torch.distributions.Normal(grid, at(1e-3, 1)).log_prob(at(y, 1)).exp()  # in place of the delta function
    density = prior * (share + (1 - share) * sharp)  # a uniform colour has density 1
    density = density / density.sum()
    mean = (density * grid).sum()
    variance = (density * (grid - mean).square()).sum()
    actual_mean, actual_variance = posterior.impulse_posterior(
        at(y, 1, 1, 1, 1), at(0.3, 1, 1, 1, 1), at(0.02, 1, 1, 1, 1, 1), at(share, 1, 1, 1, 1)
    )
    # the width of ``sharp`` and the 1e-6 added to the prior change densities by less than a thousandth
    assert actual_mean.item() == pytest.approx(mean.item(), abs=2e-4)
    assert actual_variance.item() == pytest.approx(variance.item(), abs=2e-5)


def test_the_posterior_mean_of_impulse_noise_in_colour_is_the_published_form():
    raw, share = raw_outputs(3, "full", 0.2), 0.3
    y = observed(raw, 3, 0.3, 0)
    mean, prior = posterior.moments(raw, 3, "full")
    restored, covariance = posterior.impulse_posterior(y, mean, prior, torch.full((1, 1, 1, 1), share).double())
    regular = matrices(prior) + 1e-6 * torch.eye(3, dtype=torch.float64)
    h = (1 - share) * torch.distributions.MultivariateNormal(vectors(mean), regular).log_prob(vectors(y)).exp()[:, None]
    expected = (share * vectors(mean) + h * vectors(y)) / (share + h)
    assert torch.allclose(vectors(restored), expected, rtol=1e-6, atol=1e-9)
    assert torch.linalg.eigvalsh(matrices(covariance)).min() > -1e-12


def test_the_posterior_of_impulse_noise_allows_a_certain_prior():
    mean, prior, share = at(0.3, 1, 3, 1, 1), at(0.0, 1, 3, 3, 1, 1), at(0.5, 1, 1, 1, 1)
    for y in (0.3, 0.9):
        restored, covariance = posterior.impulse_posterior(at(y, 1, 3, 1, 1), mean, prior, share)
        assert torch.allclose(restored, mean, atol=1e-6)
        assert covariance.isfinite().all()


def test_float32_is_not_precise_enough():
    """A nearly singular prior and the smallest sigma: why the mathematics is in float64."""
    raw = raw_outputs(3, "full", 1)
    y = observed(raw, 3, 1, 1e-3)
    mean, prior = posterior.moments(raw, 3, "full")
    covariance = prior + posterior.diagonal(at(1e-6, *mean.shape))
    exact = posterior.Factorisation.of(covariance).quadratic(y.double() - mean)
    single = posterior.Factorisation.of(covariance.float()).quadratic(y - mean.float())
    error = ((single - exact) / exact).abs()
    assert error.max() > 1e-2
