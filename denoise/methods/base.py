"""What a noise2X method is: what it may see, what the net gets, how it is scored, how it restores."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor, nn

from denoise.noise import Noise

if TYPE_CHECKING:
    from denoise.rng import Rng

View = Literal["noisy", "noisy2", "clean", "sigma"]
Views = Mapping[str, Tensor]  # view -> (B, C, H, W), or (B, 1, 1, 1) for sigma
Batch = dict[str, Tensor]


class Method(Protocol):
    """A way to train a denoiser. Implementations are frozen dataclasses; their fields are the hyperparameters.

    What one phase knows and the next needs (masks, recorruption) travels in the batch, never on an object.
    """

    @property
    def needs(self) -> tuple[View, ...]:
        """The views this method may see; it is never handed another."""
        ...

    def make_batch(self, sample: Views, rng: "Rng") -> Batch:
        """Return what the net is fed (``input``), is compared with (``target``), and whatever else the loss needs."""
        ...

    def loss(self, net: nn.Module, batch: Batch, progress: float) -> Batch:
        """Return ``loss``, the scalar to minimise, and further terms worth logging; ``progress`` runs from 0 to 1."""
        ...

    def predict(self, net: nn.Module, noisy: Tensor, sigma: Tensor | None) -> Tensor:
        """Return the restored pictures of a noisy batch (B, C, H, W), same shape."""
        ...


def observe(clean: Tensor, noise: Noise, needs: Iterable[View], rng: "Rng") -> Views:
    """Return the views of a clean batch that a method asked for, and no other.

    noisy and noisy2 are independent: noise, and sigma where it has a range, are drawn anew for each of them.
    """
    wanted = set(needs)
    views: dict[str, Tensor] = {}
    if wanted & {"noisy", "sigma"}:
        noisy, sigma = noise.corrupt(clean, rng.stream("noisy"))
        views.update(noisy=noisy, sigma=sigma)
    if "noisy2" in wanted:
        views["noisy2"], _ = noise.corrupt(clean, rng.stream("noisy2"))
    if "clean" in wanted:
        views["clean"] = clean
    return {name: view for name, view in views.items() if name in wanted}
