"""AT-BSN: a blind spot as large as the noise is correlated, and a smaller one to restore with (CVPR 2024)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from denoise.errors import UserError
from denoise.methods.base import Batch, MakeNet, Method, View, Views
from denoise.methods.losses import distance
from denoise.rng import Rng

TEACHERS = (0, 1, 3, 5, 7, 9, 11)  # holes of the images that a student learns from
LARGEST_HOLE = 31  # its half is the part of an overlap of 64 that tiles discard, so their borders do not show


@dataclass(frozen=True)
class ATBSN(Method):
    """Predict each pixel from beyond a hole around it, which covers the pixels whose noise is correlated with its own.

        L = mean |f_h(y) - y|                      h = ``hole``

        restored = f_k(y)                          k = ``hole_at_test``

    with the noisy image y, over all pixels, and a network f_h whose output does not depend on the h x h pixels around
    (Chen et al., Exploring Asymmetric Blind-Spots, CVPR 2024, section 3). Noise beyond the hole must be independent of
    the pixel's own, and have the median 0. The weights do not depend on the hole (``UNetSSDN``), so that images are
    restored with a smaller one: a smaller hole in training lets the net learn to copy the neighbours' noise, and a
    larger one at test only loses detail. 0 is no hole at all: the net then sees the pixel itself.

    The network decides the shape: with ``net=tmbsn`` the hole is the diamond of that width and height, |dx| + |dy| < s
    where the square has max(|dx|, |dy|) < s, s = (h + 1) / 2. That is TM-BSN (CVPR 2026), published with h = 9.

    The hole that is needed follows from the noise: pixels h/2 away should correlate by less than about 0.1. The
    published 9 is for the sRGB images of SIDD, where 7 was too little. The authors compute with images in [0, 255].
    """

    hole: Annotated[int, Field(ge=1, le=LARGEST_HOLE)] = 9  # side in pixels, odd
    hole_at_test: Annotated[int, Field(ge=0, le=LARGEST_HOLE)] = 3  # odd, or 0
    needs: ClassVar[tuple[View, ...]] = ("noisy",)
    net: ClassVar[str] = "unet_ssdn"

    def __post_init__(self) -> None:
        for name, side in (("hole", self.hole), ("hole_at_test", self.hole_at_test)):
            if side and side % 2 == 0:
                raise UserError(f"method.{name} is {side}, expected an odd number; write {side - 1} or {side + 1}.")

    def assumes_independent_noise(self) -> bool:
        """Return whether the hole is the pixel alone."""
        return self.hole == 1

    def make_net(self, make: MakeNet) -> nn.Module:
        """Return the configured network in its form with a blind spot, whose shift is chosen at each call."""
        net = make(blind_spot=True)
        if getattr(net, "largest_shift", LARGEST_HOLE) < max(map(shift, (self.hole, self.hole_at_test))):
            raise UserError(
                "method=atbsn needs a network whose blind spot can be as large as method.hole, and this one's is one "
                "pixel; use net=unet_ssdn or net=tmbsn."
            )
        return net

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the noisy image, which the network is fed and compared with. Nothing is drawn."""
        return {"input": sample["noisy"]}

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the mean absolute difference of the output and the noisy image."""
        return {"loss": distance("l1", net(batch["input"], shift(self.hole)), batch["input"])}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the output with the smaller hole."""
        restored: Tensor = net(noisy, shift(self.hole_at_test))
        return restored

    def student_targets(self, net: nn.Module, noisy: Tensor) -> list[Tensor]:
        """Return what the network makes of the image with each hole of ``TEACHERS``, at little more than one pass."""
        body, head = (getattr(net, name) for name in ("body", "head"))
        maps = body(noisy)
        return [head(maps, shift(hole)) for hole in TEACHERS]


def shift(hole: int) -> int:
    """Return how far the half planes begin from a pixel, so that they leave out a hole of this side; 0 for none."""
    return (hole + 1) // 2
