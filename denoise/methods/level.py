"""The check that a noise level was given to a method that cannot restore without it."""

from torch import Tensor

from denoise.errors import UserError


def require_level(level: Tensor | None, method: str) -> Tensor:
    """Return the noise level (B, 1, 1, 1) of the images to restore.

    Raises:
        UserError: it was not given.
    """
    if level is None:
        raise UserError(
            f"method={method} needs the noise level of the images it restores, but none was given; give their noise "
            "with its number, as in gauss25."
        )
    return level
