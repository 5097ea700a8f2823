"""SSDN: a blind-spot network predicts a prior, and Bayes' rule adds the noisy pixel (Laine et al., NeurIPS 2019)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import denoise.methods.ssdn_posterior as posterior
from denoise.methods.base import Batch, MakeNet, Method, View, Views
from denoise.methods.level import require_level
from denoise.methods.losses import distance
from denoise.rng import Rng

Family = Literal["auto", "gauss", "poisson", "impulse", "none"]
SigmaKind = Literal["known", "constant", "variable"]

MIN_VALUE = 1e-3  # of sigma, of the fraction of lost pixels, and of the signal that Poisson noise is computed from
MIN_SIGMA = 1e-6  # of images that are dark throughout: a tenth of a level of 16 bits
OFFSET = 4.0  # a learnt parameter starts at softplus(-4) + 1e-3 = 0.0191
REGULARISATION = 0.1  # how strongly a large learnt sigma is preferred to a large prior variance
MAX_REWARDED = 1.0  # the sigma above which that stops: images lie in [0, 1], and without a bound L falls for ever
FINAL_EXPONENT = 0.5  # of the annealed loss of ``mu_only`` for impulse noise


class BlindSpotNet(nn.Module):
    """The blind-spot network and, where the noise level is unknown, the parameter or network that learns it."""

    def __init__(self, blind: nn.Module, sigma: SigmaKind, sigma_net: nn.Module | None = None) -> None:
        super().__init__()
        self.blind = blind
        self.multiple = int(getattr(blind, "multiple", 1))
        self.theta = nn.Parameter(torch.zeros(())) if sigma == "constant" else None
        self.sigma_net = sigma_net

    def forward(self, noisy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the raw outputs (B, outputs, H, W), and the noise parameter (B, 1, 1, 1) or None where it is known."""
        raw: Tensor = self.blind(noisy)
        return raw, self.noise_parameter(noisy)

    def noise_parameter(self, noisy: Tensor) -> Tensor | None:
        """Return the learnt noise parameter of each image, (B, 1, 1, 1), None where the noise is known."""
        if self.theta is not None:
            theta = self.theta.float().expand(len(noisy), 1, 1, 1)
        elif self.sigma_net is not None:
            theta = self.sigma_net(noisy).float().mean((1, 2, 3), keepdim=True)
        else:
            return None
        return F.softplus(theta - OFFSET) + MIN_VALUE


@dataclass(frozen=True)
class SSDN(Method):
    """Predict the mean mu and covariance Sx of a pixel from its neighbours, and add the pixel y by Bayes' rule.

        L = c mean over pixels [(y - mu)^T (Sx + Sn)^-1 (y - mu) + log det(Sx + Sn)] - 0.1 mean sigma_n

        restored = mu + Sx (Sx + Sn)^-1 (y - mu)

    L is the negative log-likelihood of y (section 3.1) less a constant, with c = 1/2 for several channels; for one
    channel c = 1, as in the paper's code, which halves the relative weight of the 0.1. The noise has the covariance
    Sn = sigma_n^2 I (Gaussian) or diag(mu / peak) (Poisson: sigma_n is the root of its diagonal, mu at least 1e-3
    there). The last term is there only where the noise parameter is learnt, and takes no sigma_n above 1: the published
    one has no bound, L falls for ever above sigma_n = 30, and a step too large there does not return. Impulse noise has
    moments of its own,

        L = mean over pixels [(y - m)^T S^-1 (y - m) + log det S]        m, S: ``ssdn_posterior.impulse_marginal``

    and ``mu_only`` the plain losses mean (mu - y)^2 or, for impulse noise, mean (|mu - y| + 1e-8)^max(0.5, 2 - 2 t)
    with the progress t of training. Noise of family none is treated as Gaussian.

    A learnt parameter (``constant``, ``variable``) is sigma for Gaussian noise, the fraction of lost pixels for impulse
    noise, and 1/peak for Poisson noise.
    """

    family: Family = "auto"  # of the noise; auto: as the images have it
    sigma: SigmaKind = "known"  # the noise parameter: given, learnt for all images, or estimated for each
    mu_only: bool = False  # the plain blind-spot network of table 1: the mean is the result, learnt by L2
    covariance: posterior.Covariance = "full"
    zero_start: bool = True  # the last layer of the second network of ``variable`` starts with zero weights
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    compiled: ClassVar[bool] = True
    net: ClassVar[str] = "unet_ssdn"
    families: ClassVar[tuple[str, ...] | None] = ("gauss", "poisson", "impulse", "none")

    def views(self) -> tuple[View, ...]:
        """Return noisy, and its level if that is known and used."""
        return self.needs if self.needs_level() else ("noisy",)

    def needs_level(self) -> bool:
        """Return whether the posterior is computed with a known level."""
        return self.sigma == "known" and not self.mu_only

    def make_net(self, make: MakeNet) -> nn.Module:
        """Return the blind-spot network with the parameter or network that learns the noise.

        The second network of ``variable`` sees the pixel itself. Its last layer starts at zero: without that
        (``zero_start`` off), training was reported not to converge.
        """
        if self.mu_only:
            return BlindSpotNet(make(blind_spot=True), "known")
        blind = make(outputs=posterior.output_count(make.channels, self.covariance), blind_spot=True)
        sigma_net = make(outputs=1, zero_last=self.zero_start) if self.sigma == "variable" else None
        return BlindSpotNet(blind, self.sigma, sigma_net)

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image, which the blind-spot network is fed and compared with."""
        return {"input": sample["noisy"], **({"level": sample["level"]} if self.needs_level() else {})}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the negative log-likelihood, regularised where the noise is learnt; logs the learnt parameter.

        With ``mu_only`` and impulse noise the exponent falls from 2 to 0.5, because the mean over the lost pixels is
        not the clean value.
        """
        noisy = batch["input"]
        raw, theta = net(noisy)
        if self.mu_only and self._kind == "impulse":
            return {"loss": distance("l0", raw, noisy, progress=progress, final_exponent=FINAL_EXPONENT)}
        if self.mu_only:
            return {"loss": distance("l2", raw, noisy)}
        mean, prior = posterior.moments(raw, noisy.shape[1], self.covariance)
        terms = {} if theta is None else {"theta": theta.detach().mean()}
        if self._kind == "impulse":
            marginal = posterior.impulse_marginal(mean, prior, self._lost_fraction(theta, batch.get("level")))
            return {"loss": posterior.double_nll(noisy, *marginal).mean().float(), **terms}
        variance = self._variance(noisy, mean, theta, batch.get("level"))
        loss = posterior.double_nll(noisy, mean, prior + posterior.diagonal(variance)).mean()
        if noisy.shape[1] > 1:
            loss = 0.5 * loss
        if theta is not None:
            loss = loss - REGULARISATION * variance.sqrt().clamp_max(MAX_REWARDED).mean()
        return {"loss": loss.float(), **terms}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the posterior mean, or with ``mu_only`` the mean of the prior."""
        raw, theta = net(noisy)
        if self.mu_only:
            prior_mean: Tensor = raw.to(noisy.dtype)
            return prior_mean
        mean, prior = posterior.moments(raw, noisy.shape[1], self.covariance)
        if self._kind == "impulse":
            restored, _ = posterior.impulse_posterior(noisy, mean, prior, self._lost_fraction(theta, level))
        else:
            variance = self._variance(noisy, mean, theta, level)
            restored = posterior.posterior_mean(noisy, mean, prior, posterior.diagonal(variance))
        return restored.to(noisy.dtype)

    def deviation(self, net: nn.Module, noisy: Tensor, level: Tensor | None) -> Tensor:
        """Return the posterior standard deviation of every value (B, C, H, W); it is as reliable as the prior."""
        if self.mu_only:
            return super().deviation(net, noisy, level)
        raw, theta = net(noisy)
        mean, prior = posterior.moments(raw, noisy.shape[1], self.covariance)
        if self._kind == "impulse":
            _, covariance = posterior.impulse_posterior(noisy, mean, prior, self._lost_fraction(theta, level))
        else:
            variance = self._variance(noisy, mean, theta, level)
            covariance = posterior.posterior_covariance(prior, posterior.diagonal(variance))
        known = covariance.diagonal(dim1=1, dim2=2).movedim(-1, 1).clamp_min(0)  # rounding may leave -1e-18
        return known.sqrt().to(noisy.dtype)

    def estimated_level(self, net: nn.Module, noisy: Tensor) -> Tensor | None:
        """Return the learnt level: sigma, the peak of Poisson noise, or the fraction of lost pixels."""
        theta: Tensor | None = net.noise_parameter(noisy)  # type: ignore[operator]
        return 1 / theta if theta is not None and self._kind == "poisson" else theta

    @property
    def _kind(self) -> str:
        return "gauss" if self.family in ("auto", "none") else self.family

    def _variance(self, noisy: Tensor, mean: Tensor, theta: Tensor | None, level: Tensor | None) -> Tensor:
        """Return the variance of the noise (B, C, H, W): sigma^2, or for Poisson noise signal / peak.

        The signal is the predicted mean, and the gradient reaches it (section 3.2).
        """
        if self._kind == "poisson":
            signal = mean.clamp_min(MIN_VALUE)
            return signal / require_level(level, "ssdn").double() if theta is None else signal * theta.double()
        sigma = require_level(level, "ssdn").maximum(_least_sigma(noisy)) if theta is None else theta
        return sigma.double().square().expand_as(mean)

    def _lost_fraction(self, theta: Tensor | None, level: Tensor | None) -> Tensor:
        """Return the fraction of lost pixels (B, 1, 1, 1), bounded away from 0 and 1."""
        fraction = require_level(level, "ssdn") if theta is None else theta
        return fraction.clamp(MIN_VALUE, 1 - MIN_VALUE)


def _least_sigma(noisy: Tensor) -> Tensor:
    """Return what a known sigma is raised to, (B, 1, 1, 1): 1e-3, less in images that do not fill [0, 1].

    It is 1e-3 of the range that has the image's mean in its middle, so that the levels of 12-bit counts in a 16-bit
    file, of which many are below 1e-3 of the full range, remain different.
    """
    return (MIN_VALUE * 2 * noisy.float().abs().mean((1, 2, 3), keepdim=True)).clamp(MIN_SIGMA, MIN_VALUE)
