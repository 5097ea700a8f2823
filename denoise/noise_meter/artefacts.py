"""Traces of how an image was made: values cut off at the ends of the range, and the edges of JPEG's blocks."""

from torch import Tensor

JPEG_BLOCK = 8  # pixels


def saturated_share(image: Tensor) -> float:
    """Return the share of values of an image (C, H, W) in [0, 1] that are exactly 0 or 1."""
    return ((image <= 0) | (image >= 1)).double().mean().item()


def block_edges(image: Tensor) -> float:
    """Return how much larger steps between neighbours are on a grid of 8 pixels than off it, 0 without a grid.

    It is the largest over the median of the 8 possible places of the grid, less 1, of the mean size of the third
    difference across two pixels, for the direction that has less: JPEG makes edges in both.

    Args:
        image: (C, H, W), at least 16 pixels a side; 0 for a smaller one.
    """
    if min(image.shape[1:]) < 2 * JPEG_BLOCK:
        return 0.0
    return min(_edges_between_columns(image), _edges_between_columns(image.transpose(1, 2)))


def _edges_between_columns(image: Tensor) -> float:
    a, b, c, d = (image[..., start : image.shape[-1] - 3 + start] for start in range(4))
    steps = (d - 3 * c + 3 * b - a).abs().double().mean((0, 1))  # between b and c; 0 for any parabola
    steps = steps[: len(steps) // JPEG_BLOCK * JPEG_BLOCK].view(-1, JPEG_BLOCK).mean(0)
    middle = steps.median().item()
    return steps.max().item() / middle - 1 if middle > 0 else 0.0
