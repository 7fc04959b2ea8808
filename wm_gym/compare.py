"""Comparison of imagined frames with real ones."""

from __future__ import annotations

import numpy as np

# The mean squared error of rounding to 256 levels. Without a floor, equal frames would have an infinite PSNR; with it,
# none exceeds 58.9 dB.
MIN_SQUARED_ERROR = 1 / 12


def psnr(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame in dB, 10 log10(255^2 / MSE), with MSE >= `MIN_SQUARED_ERROR`.

    Args:
        frames, reference: uint8 [..., H, W, C], of shapes that broadcast against each other.

    Returns:
        float64 [...].

    Raises:
        TypeError: if one of them is not uint8.
    """
    if frames.dtype != np.uint8 or reference.dtype != np.uint8:
        raise TypeError(f"PSNR is defined here for uint8 frames, got {frames.dtype} and {reference.dtype}.")
    error = np.square(frames.astype(np.float64) - reference.astype(np.float64)).mean((-3, -2, -1))
    return 10 * np.log10(255.0**2 / np.maximum(error, MIN_SQUARED_ERROR))
