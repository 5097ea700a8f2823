"""The noisy images of a folder: files, or planes of stacks in the range that sharding would give these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from denoise.images.io import read_image
from denoise.images.tensors import Pixels, to_tensor
from denoise.sharding.plan import Source
from denoise.sharding.planes import PlaneReader
from denoise.stacks.options import AUTO, choose_range
from denoise.stacks.survey import Survey, survey
from denoise.stacks.value_range import ValueRange

LARGEST = 2048  # side in pixels of the middle of a large image, which is what is measured of it
JPEG_BLOCK = 8  # the middle begins on its grid


@dataclass(frozen=True)
class NoisyImage:
    """The noisy image of a sample."""

    source: Source
    value_range: ValueRange | None = None  # of the values of a plane

    @property
    def path(self) -> Path:
        """The file that it is, or is in."""
        return self.source.views.get("noisy") or next(iter(self.source.views.values()))

    @property
    def folder(self) -> str:
        """The folder of the sample, which for a plane is its file."""
        return self.source.name.rpartition("/")[0]

    def read(self) -> Pixels:
        """Return the values as stored, (H, W, C)."""
        if self.source.plane is None:
            return read_image(self.path).pixels
        with PlaneReader() as planes:
            return planes.read(self.path, self.source.plane)

    def middle(self, side: int = LARGEST, pixels: Pixels | None = None) -> Tensor:
        """Return the middle of at most ``side`` pixels a side, (C, H, W), the range of the values being 0 to 1.

        ``pixels`` are those that ``read`` has returned, if it was called before.
        """
        pixels = self.read() if pixels is None else pixels
        top, left = (max(0, size - side) // 2 // JPEG_BLOCK * JPEG_BLOCK for size in pixels.shape[:2])
        middle = pixels[top : top + side, left : left + side]
        return to_tensor(middle if self.value_range is None else self.value_range.to_unit(middle))


def noisy_images(sources: Sequence[Source]) -> list[NoisyImage]:
    """Return the noisy images of samples, planes among them with the range that these fill together."""
    images = [NoisyImage(source) for source in sources]
    values, dtype = Survey(), ""
    for image in images:
        if image.source.plane is not None:
            pixels = image.read()
            values, dtype = values + survey(pixels), pixels.dtype.name
    value_range = choose_range(AUTO, dtype, values, str(images[0].path)) if values.planes else None
    return [image if image.source.plane is None else replace(image, value_range=value_range) for image in images]
