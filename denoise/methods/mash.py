"""MASH: learn from the one image that is to be restored, with masks as dense as its noise is correlated (CVPR 2024)."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from denoise.fields import AutoYesNo, Positive
from denoise.methods.base import Batch, Method, View, Views
from denoise.methods.losses import distance
from denoise.methods.single_image import learning, trained_copy
from denoise.rng import Rng

LOW, MEDIUM, HIGH = 0.2, 0.5, 0.8  # shares of values that a mask hides
LITTLE, MUCH = 1.5 / 255, 2.5 / 255  # gaps between two estimates of sigma: noise hardly, and strongly correlated


@dataclass(frozen=True)
class MASH(Method):
    """Train a net on each image alone to predict values that a mask hides, as many as the noise is correlated.

        L = mean over the hidden values of (f(m y) - y)^2            m = 0 with probability tau, drawn for every value

        restored = mean over ``masks`` masks m of f(m y)

    with the noisy image y (Chihaoui and Favaro, equations 4 and 11). Where noise is correlated a net predicts it from
    its neighbours, and the denser the mask the less. So tau follows from two trainings with 0.2 and 0.8 (equations 8 to
    10): the larger the gap of sigma_tau = rms (f(m y) - y) between them, the more the noise is correlated. A gap up to
    1.5 of 255 gives tau = 0.2, up to 2.5 gives 0.5, and more gives 0.8. With that last one pixels are also shuffled
    (equations 5 to 7): after half of the steps, in the tiles where the restored image has a standard deviation below
    ``flat``, the pixels of the target are permuted.

    ``predict`` trains, three times ``steps`` steps for every image of the batch (for every tile of a large one), with
    Adam and a cosine to 0. The paper names neither the learning rate, nor when it shuffles, nor what is flat; these are
    choices of this project.
    """

    steps: Positive = 800
    lr: Annotated[float, Field(gt=0)] = 1e-3  # not in the paper
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None  # tau; None: by the gap
    shuffle: AutoYesNo = "auto"  # auto: where the gap says so
    tile: Annotated[int, Field(ge=2, le=32)] = 4  # side of the tiles that pixels are shuffled in
    flat: Annotated[float, Field(ge=0)] = 0.02  # of values in [0, 1]; not in the paper
    masks: Positive = 10  # predictions that are averaged
    needs: ClassVar[tuple[View, ...]] = ("noisy",)
    trained: ClassVar[bool] = False

    def assumes_independent_noise(self) -> bool:
        """Return False: it looks how correlated noise is."""
        return False

    def make_batch(self, sample: Views, rng: Rng) -> Batch:
        """Return the image without the hidden values, the image, and where it is hidden; tau is 0.5 where open."""
        return masked(sample["noisy"], self.ratio or MEDIUM, rng)

    def loss(self, net: nn.Module, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the mean squared error of the hidden values."""
        return {"loss": distance("l2", net(batch["input"]), batch["target"], mask=batch["mask"])}

    def predict(self, net: nn.Module, noisy: Tensor, level: Tensor | None, rng: Rng) -> Tensor:
        """Return what nets, trained on each image alone, restore."""
        with learning(noisy.device):
            images = torch.split(noisy.float().clone(), 1)
            return torch.cat(
                [
                    self._restore_alone(net, image, replace(rng, keys=rng.keys[number : number + 1]))
                    for number, image in enumerate(images)
                ]
            )

    def gap(self, net: nn.Module, noisy: Tensor, rng: Rng) -> float:
        """Return the gap of an image (1, C, H, W): how much more noise a dense mask finds than a sparse one."""
        found = []
        for ratio in (LOW, HIGH):
            key = rng.stream(f"gap {ratio}")
            trained = self._train(net, noisy, noisy, ratio, range(self.steps), key)
            with torch.no_grad():
                error = trained(masked(noisy, ratio, key.stream("error"))["input"]) - noisy
            found.append(error.square().mean().sqrt())
        return float((found[1] - found[0]).abs())

    def choice(self, gap: float) -> tuple[float, bool]:
        """Return tau, and whether pixels are shuffled, as the fields say, else as the gap does."""
        ratio = LOW if gap <= LITTLE else MEDIUM if gap < MUCH else HIGH
        return self.ratio or ratio, gap >= MUCH if self.shuffle == "auto" else self.shuffle == "yes"

    def _restore_alone(self, net: nn.Module, noisy: Tensor, rng: Rng) -> Tensor:
        asks = self.ratio is None or self.shuffle == "auto"
        ratio, shuffles = self.choice(self.gap(net, noisy, rng) if asks else 0)
        half = self.steps // 2 if shuffles else self.steps
        trained = self._train(net, noisy, noisy, ratio, range(half), rng)
        if shuffles:
            restored = self._restored(trained, noisy, ratio, rng.stream("flat"))
            target = shuffled(noisy, restored, self.tile, self.flat, rng.stream("shuffle"))
            trained = self._train(trained, noisy, target, ratio, range(half, self.steps), rng)
        return self._restored(trained, noisy, ratio, rng.stream("masks"))

    def _train(self, net: nn.Module, noisy: Tensor, target: Tensor, ratio: float, steps: range, rng: Rng) -> nn.Module:
        """Return a copy of the net, trained in these steps; the rate falls to 0 with the last step of all."""

        def loss(net: nn.Module, number: int) -> Tensor:
            batch = {**masked(noisy, ratio, rng.stream(f"step {steps[number]}")), "target": target}
            return self.loss(net, batch, steps[number] / self.steps)["loss"]

        def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
            def rate(number: int) -> float:
                progress = torch.tensor((steps.start + number) / self.steps)
                return (0.5 * (1 + torch.cos(torch.pi * progress))).item()

            return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

        return trained_copy(net, loss, steps=len(steps), lr=self.lr, schedule=cosine)

    def _restored(self, net: nn.Module, noisy: Tensor, ratio: float, rng: Rng) -> Tensor:
        """Return the mean of the predictions with ``masks`` masks."""
        with torch.no_grad():
            total = torch.zeros_like(noisy)
            for number in range(self.masks):
                total += net(masked(noisy, ratio, rng.stream(f"mask {number}"))["input"])
            return total / self.masks


def masked(noisy: Tensor, ratio: float, rng: Rng) -> Batch:
    """Return noisy images (B, C, H, W) with a share of their values set to 0, themselves, and where that is."""
    hidden = rng.stream("hidden").uniform(*noisy.shape[1:]) < ratio
    return {"input": noisy.masked_fill(hidden, 0), "target": noisy, "mask": hidden.float()}


def shuffled(noisy: Tensor, restored: Tensor, side: int, flat: float, rng: Rng) -> Tensor:
    """Return an image (1, C, H, W) with the pixels of each flat tile in another order, all channels of one together.

    A tile is flat where the mean over channels of the standard deviation of ``restored`` is below ``flat``. Rows and
    columns that are left over at the end stay as they are.
    """
    rows, columns = (size // side * side for size in noisy.shape[-2:])
    tiles, smooth = (_tiles(image[..., :rows, :columns], side) for image in (noisy, restored))
    order = rng.uniform(*tiles.shape[1:]).argsort(dim=-1).expand_as(tiles)
    calm = smooth.std(dim=-1, keepdim=True).mean(dim=0, keepdim=True) < flat
    mixed = torch.where(calm, tiles.gather(-1, order), tiles)
    result = noisy.clone()
    blocks = mixed.view(*mixed.shape[:3], side, side).transpose(2, 3)  # (C, rows, side, columns, side)
    result[0, :, :rows, :columns] = blocks.reshape(-1, rows, columns)
    return result


def _tiles(image: Tensor, side: int) -> Tensor:
    """Return (C, rows of tiles, columns of tiles, side^2) of an image (1, C, H, W)."""
    channels, height, width = image.shape[1:]
    blocks = image[0].reshape(channels, height // side, side, width // side, side)
    return blocks.transpose(2, 3).flatten(3)
