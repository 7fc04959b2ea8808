"""Comparison of imagined frames with real ones."""

from __future__ import annotations

import numpy as np

MAX_PSNR = 100.0


def psnr(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame in dB, 10 log10(255^2 / MSE); equal frames get `MAX_PSNR`.

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
    floor = 255.0**2 / 10 ** (MAX_PSNR / 10)
    return 10 * np.log10(255.0**2 / np.maximum(error, floor))
