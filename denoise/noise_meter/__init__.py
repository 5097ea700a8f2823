"""The noise of images, measured from the noisy images alone: level, correlation, and traces of how they were made."""

from denoise.noise_meter.artefacts import block_edges, saturated_share
from denoise.noise_meter.blocks import SIDE
from denoise.noise_meter.measurement import CORRELATED, LITTLE, REACH, NoiseMeasurement, measure_noise
from denoise.noise_meter.movement import Movement, measure_movement

__all__ = [
    "CORRELATED",
    "LITTLE",
    "REACH",
    "SIDE",
    "Movement",
    "NoiseMeasurement",
    "block_edges",
    "measure_movement",
    "measure_noise",
    "saturated_share",
]
