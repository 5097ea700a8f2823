"""The noise2X methods by their command-line name."""

from collections.abc import Mapping

from denoise.config import build
from denoise.errors import UserError, nearest
from denoise.methods.base import Batch, Method, View, Views, observe
from denoise.methods.noise2clean import Noise2Clean
from denoise.methods.noise2noise import Noise2Noise

__all__ = ["METHODS", "Batch", "Method", "View", "Views", "build_method", "observe"]

METHODS: dict[str, type[Method]] = {"n2c": Noise2Clean, "n2n": Noise2Noise}


def build_method(name: str, fields: Mapping[str, object]) -> Method:
    """Return the method of a name with its hyperparameters; unknown names and fields are UserErrors with a hint."""
    if name not in METHODS:
        raise UserError(f"method={name} is not known{nearest(name, METHODS)}; use one of {', '.join(METHODS)}.")
    return build(METHODS[name], fields, where="method")
