"""PSNR and SSIM of a restored image, by scikit-image. Every score must be shown with its protocol's name."""

import numpy as np
from torch import Tensor

WINDOW = 11  # pixels, of the SSIM


def psnr(restored: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of one image (C, H, W) in [0, 1], computed in float64."""
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):  # equal images have an infinite PSNR
        return float(peak_signal_noise_ratio(_array(clean), _array(restored), data_range=1.0))


def ssim(restored: Tensor, clean: Tensor) -> float:
    """Structural similarity of one image (C, H, W) in [0, 1], mean over channels (Wang et al. 2004).

    Gaussian window of sigma 1.5 and 11 pixels as in the paper; images smaller than that are extended by reflection.
    """
    from skimage.metrics import structural_similarity

    images = _array(clean), _array(restored)
    missing = [(0, 0)] + [(0, max(0, WINDOW - side)) for side in clean.shape[1:]]
    padded_clean, padded_restored = (np.pad(image, missing, mode="symmetric") for image in images)
    return float(
        structural_similarity(
            padded_clean,
            padded_restored,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _array(image: Tensor) -> np.ndarray:
    return image.detach().cpu().double().numpy()
