"""The interface of a noise2X method: the views it may see, its batch, its loss, and how it restores an image."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from denoise.errors import UserError
from denoise.methods.losses import VALIDATION_PROGRESS
from denoise.noise import Noise
from denoise.rng import Rng

View = Literal["noisy", "noisy2", "clean", "level", "mask", "mask2", "taught"]
# View -> (B, C, H, W); (B, 1, 1, 1) for level and for masks that count everything; (B, T C, H, W) for the T targets
# that a teacher makes of noisy.
Views = Mapping[str, Tensor]
Batch = dict[str, Tensor]


class MakeNet(Protocol):
    """Builds the configured network, with fresh weights."""

    @property
    def channels(self) -> int:
        """The channels of the images."""
        ...

    def __call__(self, *, outputs: int | None = None, blind_spot: bool = False, zero_last: bool = False) -> nn.Module:
        """Return a network.

        Args:
            outputs: its output channels, as many as the images have where None.
            blind_spot: whether an output pixel must not depend on the input pixel at its place. Such a network is
                called as ``net(noisy, shift)``: the hole is that pixel with shift 1, one ring more with each step
                (none with ``largest_shift`` 1).
            zero_last: whether the last layer starts with zero weights.

        Raises:
            UserError: the configured network has no such form.
        """
        ...


@dataclass(frozen=True)
class Method:
    """A way to train a denoiser. Implementations are frozen dataclasses; their fields are the hyperparameters.

    What one phase knows and the next needs (masks, recorruption) travels in the batch, never on an object. In the
    formulas of the subclasses f is the net, and mean is over the values of a sample, then over samples.
    """

    needs: ClassVar[tuple[View, ...]]  # the views this method may see; it is never handed another
    net: ClassVar[str] = "unet_n2n"  # the network that ``net=auto`` chooses
    families: ClassVar[tuple[str, ...] | None] = None  # the noise it is defined for, by family; None: any
    trained: ClassVar[bool] = True  # False: it restores without any training
    compiled: ClassVar[bool] = False  # True: ``train.compile=auto`` compiles it on a GPU

    def views(self) -> tuple[View, ...]:
        """Return the views that training needs with these hyperparameters."""
        return self.needs

    def assumes_independent_noise(self) -> bool:
        """Return whether training takes the noise of a pixel to be independent of that of its neighbours.

        Not where a second image of the scene, or a clean one, is the target.
        """
        return not {"noisy2", "clean"} & set(self.views())

    def test_time_passes(self) -> int:
        """Return how many passes of ``predict``, each with its own randomness, are averaged to restore an image."""
        return 1

    def needs_level(self) -> bool:
        """Return whether ``predict`` needs the noise level."""
        return False

    def make_net(self, make: MakeNet) -> nn.Module:
        """Return the module to train: the configured network, alone or with further modules that the method learns."""
        return make()

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return what the net is fed (``input``), is compared with (``target``), and whatever else the loss needs."""
        raise NotImplementedError

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return ``loss``, the scalar to minimise, and further terms worth logging; ``progress`` runs from 0 to 1.

        In a CUDA graph the progress is a tensor, which no branch may ask. Every term is a mean over the samples of the
        batch, so that ranks can average theirs.
        """
        raise NotImplementedError

    def validation_progress(self) -> float:
        """Return the progress at which validations take the loss: the end of training, unless the loss says another."""
        return VALIDATION_PROGRESS[getattr(self, "loss_name", "l2")]

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return the restored images of a noisy batch (B, C, H, W), same shape; by default the net's output."""
        restored: Tensor = net(noisy)
        return restored

    def deviation(self, net: nn.Module, noisy: Tensor, level: Tensor | None) -> Tensor:
        """Return the standard deviation of the restored values (B, C, H, W) as the method itself estimates it."""
        raise UserError(f"{type(self).__name__} gives no standard deviation; of the methods only ssdn does.")

    def student_targets(self, net: nn.Module, noisy: Tensor) -> list[Tensor]:
        """Return what a student should learn from besides the image that ``predict`` restores, in its place.

        Each is a batch (B, C, H, W) like ``noisy``. Empty, as for most methods: there is nothing better.
        """
        return []

    def estimated_level(self, net: nn.Module, noisy: Tensor) -> Tensor | None:
        """Return the noise level that the net finds in each image, (B, 1, 1, 1), None where the method learns none."""
        return None


def observe(image: Tensor, noise: Noise, needs: Iterable[View], rng: Rng) -> Views:
    """Return the views of a batch of images that a method asked for, and no other.

    noisy and noisy2 are independent: noise, and its level where it has a range, are drawn anew for each of them.
    ``level`` and ``mask`` are those of noisy, ``mask2`` is that of noisy2.
    """
    requested = set(needs)
    views: dict[str, Tensor] = {}
    all_counted = torch.ones(len(image), 1, 1, 1, device=image.device)
    if requested & {"noisy", "level", "mask"}:
        observed = noise.corrupt(image, rng.stream("noisy"))
        views.update(
            noisy=observed.noisy, level=observed.level, mask=all_counted if observed.mask is None else observed.mask
        )
    if requested & {"noisy2", "mask2"}:
        observed = noise.corrupt(image, rng.stream("noisy2"))
        views.update(noisy2=observed.noisy, mask2=all_counted if observed.mask is None else observed.mask)
    if "clean" in requested:
        views["clean"] = noise.reference(image)
    return {name: view for name, view in views.items() if name in requested}
