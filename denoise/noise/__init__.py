"""The noise models: the registry by family, and how a name such as ``gauss25`` or ``poisson5_50`` is parsed."""

import re

from denoise.errors import UserError, nearest
from denoise.noise.base import Noise, Observation
from denoise.noise.bernoulli import Bernoulli
from denoise.noise.clipped_gaussian import ClippedGaussian
from denoise.noise.correlated import Correlated
from denoise.noise.gaussian import Gaussian
from denoise.noise.impulse import Impulse
from denoise.noise.poisson import Poisson
from denoise.noise.real import Real
from denoise.noise.subsample import Subsample
from denoise.noise.text import Text

__all__ = ["NOISES", "Noise", "Observation", "parse_noise"]

NOISES: dict[str, type[Noise]] = {
    noise.family: noise
    for noise in (Gaussian, ClippedGaussian, Correlated, Poisson, Bernoulli, Impulse, Text, Subsample, Real)
}

_NUMBER = r"(\d+(?:\.\d+)?)"
_NAME = re.compile(rf"([a-z]+)(?:{_NUMBER}(?:_{_NUMBER})?)?", re.ASCII)


def parse_noise(name: str) -> Noise:
    """Return the noise model of a name such as ``gauss25`` (one level), ``gauss5_50`` (a range) or ``none``.

    Raises:
        UserError: an unknown family, missing numbers, or numbers out of the family's range.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in NOISES:
        close = nearest(name.rstrip("0123456789._ "), NOISES)
        known = "; ".join(noise.example for noise in NOISES.values())
        raise UserError(f"noise={name} is not a known noise{close}; write {known}.")
    noise = NOISES[match[1]]
    if noise is Real:
        if match[2] is not None:
            raise UserError(f"noise={name} has a number, but nothing is added to real noise; write {noise.example}.")
        return Real()
    if match[2] is None:
        raise UserError(f"noise={name} lacks its number; write {noise.example}.")
    return noise(float(match[2]), float(match[3] or match[2]))
