"""Generalized Recorrupted2Recorrupted for photon counts (Monroy, Bacca and Tachella, CVPR 2025)."""

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from denoise.errors import UserError
from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.level import require_level
from denoise.methods.losses import LossName, distance
from denoise.noise.binomial import LARGEST_COUNT, binomial
from denoise.rng import Rng

Family = Literal["auto", "poisson", "none"]
MOST_PHOTONS = 4095  # of a pixel under Poisson noise: 1000 at white on average


@dataclass(frozen=True)
class GeneralizedR2R(Method):
    """Deal the photons of an image out to two images, whose noise is then independent.

        L = mean (f(y1) - y2)^2,    y1 = g (k - w) / (1 - a),    y2 = g w / a,    w ~ Binomial(k, a)

    with k = y / g the photons of a pixel, of g grey values each, and w drawn anew every step. For Poisson counts y1 and
    y2 are independent (the thinning theorem), each with the clean image as its mean, so that the expected loss is the
    supervised one plus a constant. At test f(y1) is averaged over ``passes`` draws of w.

    For synthetic Poisson noise g is 1 / peak. Real images need ``gain``; their values are rounded to whole photons,
    and negative ones count as none. An offset or read noise that they hold breaks the independence.
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15  # a, the share of the photons that become the target
    passes: Annotated[int, Field(ge=1, le=10_000)] = 5  # images y1 whose restorations are averaged
    gain: Annotated[float, Field(gt=0, le=1)] | None = None  # g of real images, a full range being 1
    loss_name: LossName = "l2"
    family: Family = "auto"  # of the noise; none: real images
    needs: ClassVar[tuple[View, ...]] = ("noisy", "level")
    families: ClassVar[tuple[str, ...] | None] = ("poisson", "none")

    def __post_init__(self) -> None:
        if self.family == "none" and self.gain is None:
            raise UserError(
                "method=gr2r needs what one photon adds to an image whose full range is 1, but none was given; give "
                "method.gain, such as the slope that `denoise advise` measures."
            )
        if self.gain is not None and 1 / self.gain > LARGEST_COUNT:
            raise UserError(
                f"method.gain={self.gain:g} makes {1 / self.gain:.0f} photons of white, expected at most "
                f"{LARGEST_COUNT}; with so many, use method=r2r."
            )

    def views(self) -> tuple[View, ...]:
        """Return the noisy image, and the peak where the gain is not given."""
        return ("noisy", "level") if self.gain is None else ("noisy",)

    def test_time_passes(self) -> int:
        """Return how many draws of the photons are averaged."""
        return self.passes

    def needs_level(self) -> bool:
        """Return whether the peak has to be told."""
        return self.gain is None

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the two images that the photons were dealt out to."""
        larger, smaller = self._deal(sample["noisy"], sample.get("level"), rng)
        return {"input": larger, "target": smaller}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the distance of the output to the image of the other photons."""
        return {"loss": distance(self.loss_name, net(batch["input"]), batch["target"], progress=progress)}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the net's output for the image of most photons; the caller averages ``passes`` of these."""
        restored: Tensor = net(self._deal(noisy, level, rng)[0])
        return restored

    def _deal(self, noisy: Tensor, level: Tensor | None, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return y1 and y2, (B, C, H, W)."""
        largest = MOST_PHOTONS if self.gain is None else ceil(1 / self.gain)
        gain = 1 / require_level(level, "gr2r") if self.gain is None else self.gain
        photons = (noisy / gain).round().clamp(0, largest)
        dealt = binomial(photons, self.ratio, largest, rng.stream("photons")).to(noisy.dtype)
        return (photons - dealt) * gain / (1 - self.ratio), dealt * gain / self.ratio
