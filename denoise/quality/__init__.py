"""How good restored images are, estimated from noisy images alone."""

from denoise.quality.flat_places import measure_local_noise
from denoise.quality.intervals import CONFIDENCE, ErrorEstimate, PsnrEstimate, mean_psnr
from denoise.quality.local_noise import LocalNoise, known_noise
from denoise.quality.pairs import pair_error
from denoise.quality.residual import ResidualStructure, autocorrelation, structure
from denoise.quality.statement import Source, describe
from denoise.quality.sure import sure

__all__ = [
    "CONFIDENCE",
    "ErrorEstimate",
    "LocalNoise",
    "PsnrEstimate",
    "ResidualStructure",
    "Source",
    "autocorrelation",
    "describe",
    "known_noise",
    "mean_psnr",
    "measure_local_noise",
    "pair_error",
    "structure",
    "sure",
]
