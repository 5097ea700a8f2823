"""The error of restored images, measured with a second noisy observation of the same scene."""

from torch import Tensor

from denoise.quality.intervals import ErrorEstimate


def pair_error(noisy: tuple[Tensor, Tensor], restored: tuple[Tensor, Tensor]) -> ErrorEstimate:
    """Return the mean squared error of the restored images of two observations, the mean of both, without a clean one.

        MSE = 1/2 mean [(f(y1) - y2)^2 + (f(y2) - y1)^2 - (y1 - y2)^2]

    Write y1 = x + n1 and y2 = x + n2: the expectation is that of 1/2 mean [(f(y1) - x)^2 + (f(y2) - x)^2] wherever n1
    and n2 have zero mean and are independent of each other; their levels may differ, and each may be correlated within
    its image. This is Noise2Noise's argument (Lehtinen et al. 2018, section 2) for an error in place of a loss. Where
    both levels are equal, mean (f(y1) - y2)^2 - 1/2 mean (y1 - y2)^2 estimates the same with more variance.

    Args:
        noisy: the two observations, (C, H, W) each.
        restored: each of them restored.
    """
    (first, second), (of_first, of_second) = noisy, restored
    fidelity = ((of_first - second).double().square() + (of_second - first).double().square()) / 2
    return ErrorEstimate.of(fidelity, fidelity - (first - second).double().square() / 2)
