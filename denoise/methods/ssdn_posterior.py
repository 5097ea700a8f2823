"""The mathematics of SSDN (Laine et al. 2019, section 3): the prior, marginal and posterior of a pixel.

A pixel's prior is N(mu, Sx) over its C channels, predicted from its neighbours. Images, means and variances are
(B, C, H, W), covariances (B, C, C, H, W). Everything is elementwise over pixels in float64: a learnt covariance may be
nearly singular and a learnt sigma as small as 1e-3, where float32 has no digits left, and beside the network the cost
is small on every device.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Covariance = Literal["full", "diagonal"]
MIN_VARIANCE = 1e-6  # added to the prior where its density is needed (the paper's code)


def output_count(channels: int, kind: Covariance) -> int:
    """Return how many numbers a network must predict for each pixel: C means, and a triangle or a diagonal."""
    return 2 * channels if kind == "diagonal" else channels + channels * (channels + 1) // 2


def moments(raw: Tensor, channels: int, kind: Covariance) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance A A^T that a network's raw outputs (B, outputs, H, W) encode.

    A is upper triangular, with its entries row by row, or diagonal; the entries may have any sign.
    """
    raw = raw.double()
    mean, entries = raw[:, :channels], raw[:, channels:]
    a = raw.new_zeros(len(raw), channels, channels, *raw.shape[2:])
    if kind == "diagonal":
        index = torch.arange(channels, device=raw.device)
        row, column = index, index
    else:
        row, column = torch.triu_indices(channels, channels, device=raw.device)
    a[:, row, column] = entries
    return mean, _product(a, a.transpose(1, 2))


def diagonal(variance: Tensor) -> Tensor:
    """Return the covariance (B, C, C, H, W) of independent channels with that variance (B, C, H, W)."""
    return torch.diag_embed(variance.double().movedim(1, -1), dim1=1, dim2=2)


def double_nll(observed: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return (y - m)^T S^-1 (y - m) + log det S, (B, H, W): twice the negative log-likelihood, less C log 2 pi."""
    factor = Factorisation.of(covariance)
    return factor.quadratic(observed.double() - mean) + factor.log_determinant()


def posterior_mean(observed: Tensor, mean: Tensor, prior: Tensor, noise: Tensor) -> Tensor:
    """Return mu + Sx (Sx + Sn)^-1 (y - mu), the expected clean value (section 3.1).

    Equal to the paper's (Sx^-1 + Sn^-1)^-1 (Sx^-1 mu + Sn^-1 y), but defined for a singular prior too.
    """
    weight = Factorisation.of(prior + noise).solve(observed.double() - mean)
    return mean + (prior * weight[:, None]).sum(2)


def posterior_covariance(prior: Tensor, noise: Tensor) -> Tensor:
    """Return Sx - Sx (Sx + Sn)^-1 Sx, the covariance of the clean value once its pixel is known.

    Written (I - K) Sx (I - K)^T + K Sn K^T with the gain K (Joseph's form): a sum of squares, never negative.
    """
    factor = Factorisation.of(prior + noise)
    gain = torch.stack([factor.solve(prior[:, :, c]) for c in range(prior.shape[1])], dim=1)  # row c is (Sy^-1 Sx_c)^T
    complement = diagonal(torch.ones_like(prior[:, 0])) - gain
    return _sandwich(complement, prior) + _sandwich(gain, noise)


def impulse_marginal(mean: Tensor, prior: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of a pixel that with probability ``alpha`` was replaced by a uniform colour.

    The uniform colour has mean 1/2 and covariance I/12, so the mixture has mean alpha/2 + (1 - alpha) mu and covariance
    alpha I/12 + (1 - alpha) Sx + alpha (1 - alpha) (mu - 1/2)(mu - 1/2)^T: the paper's second moments less m m^T,
    without its cancellation. The paper's code keeps the determinant above 1e-9; here it is above (alpha/12)^C.
    """
    alpha = alpha.double()
    difference = mean - 0.5
    matrix_alpha = alpha.unsqueeze(1)
    covariance = (
        diagonal((alpha / 12).expand_as(mean))
        + (1 - matrix_alpha) * prior
        + matrix_alpha * (1 - matrix_alpha) * difference[:, :, None] * difference[:, None]
    )
    return 0.5 * alpha + (1 - alpha) * mean, covariance


def impulse_posterior(observed: Tensor, mean: Tensor, prior: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the clean value of a pixel that may have been replaced by a uniform colour.

    The odds that the pixel is clean are (1 - alpha) N(y; mu, Sx) : alpha. If so, its value is known; if not, it holds
    no information and the prior remains. The mean is (alpha mu + h y) / (alpha + h) with h = (1 - alpha) N(y; mu, Sx)
    (the paper's appendix); the covariance is that of the same mixture.
    """
    alpha, observed = alpha.double(), observed.double()
    difference = observed - mean
    factor = Factorisation.of(prior + diagonal(torch.full_like(mean, MIN_VARIANCE)))
    constant = mean.shape[1] * torch.log(torch.full((), 2 * torch.pi, dtype=mean.dtype, device=mean.device))
    log_density = -0.5 * (factor.quadratic(difference) + factor.log_determinant() + constant)
    clean = torch.sigmoid(torch.log1p(-alpha) - torch.log(alpha) + log_density[:, None])  # its probability
    lost = (1 - clean).unsqueeze(1)
    covariance = lost * prior + lost * clean.unsqueeze(1) * difference[:, :, None] * difference[:, None]
    return mean + clean * difference, covariance


@dataclass(frozen=True)
class Factorisation:
    """A covariance as L D L^T, one tensor (B, H, W) an entry: L below its unit diagonal, and the pivots D."""

    lower: list[list[Tensor]]
    pivots: list[Tensor]

    @classmethod
    def of(cls, covariance: Tensor) -> "Factorisation":
        """Factorise a positive definite covariance (B, C, C, H, W)."""
        lower: list[list[Tensor]] = []
        pivots: list[Tensor] = []
        for i in range(covariance.shape[1]):
            scaled: list[Tensor] = []  # L_ij D_j
            for j in range(i):
                scaled.append(covariance[:, i, j] - _dot(scaled, lower[j]))
            row = [entry / pivot for entry, pivot in zip(scaled, pivots, strict=True)]
            pivots.append(covariance[:, i, i] - _dot(scaled, row))
            lower.append(row)
        return cls(lower, pivots)

    def log_determinant(self) -> Tensor:
        """Return log det S, (B, H, W)."""
        return torch.stack(self.pivots).log().sum(0)

    def quadratic(self, vector: Tensor) -> Tensor:
        """Return v^T S^-1 v, (B, H, W), of vectors (B, C, H, W)."""
        solved = self._forward(vector)
        return torch.stack([value * value / pivot for value, pivot in zip(solved, self.pivots, strict=True)]).sum(0)

    def solve(self, vector: Tensor) -> Tensor:
        """Return S^-1 v, (B, C, H, W), of vectors (B, C, H, W)."""
        solution = [value / pivot for value, pivot in zip(self._forward(vector), self.pivots, strict=True)]
        for i in reversed(range(len(solution))):
            for j in range(i + 1, len(solution)):
                solution[i] = solution[i] - self.lower[j][i] * solution[j]
        return torch.stack(solution, dim=1)

    def _forward(self, vector: Tensor) -> list[Tensor]:
        """Return L^-1 v."""
        solved: list[Tensor] = []
        for i, row in enumerate(self.lower):
            solved.append(vector[:, i] - _dot(row, solved))
        return solved


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor | int:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product at every pixel."""
    return torch.stack([(left[:, i, :, None] * right).sum(1) for i in range(left.shape[1])], dim=1)


def _sandwich(outer: Tensor, inner: Tensor) -> Tensor:
    """Return M S M^T at every pixel."""
    return _product(_product(outer, inner), outer.transpose(1, 2))
