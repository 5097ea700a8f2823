"""Pixels from the bytes of a stored image: an image file, or a plane of a stack."""

from denoise.images.io import decode_quickly, read_image
from denoise.images.tensors import Pixels
from denoise.stacks.encoded import MAGIC, decode_plane


def decode_stored(data: bytes, channels: int, quick: bool) -> Pixels:
    """Return the pixels (H, W, C) of a stored image.

    Args:
        data: its bytes.
        channels: that its index says it has.
        quick: whether the quick decoder gives the same pixels.

    Raises:
        UserError: it does not decode.
        ValueError: it is a broken plane.
    """
    if data.startswith(MAGIC):
        return decode_plane(data)
    pixels = decode_quickly(data, channels) if quick else None
    return read_image(data).pixels if pixels is None else pixels
