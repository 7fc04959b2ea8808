"""Conversion between frames as environments give them and frames as the network sees them.

The only place that knows about [-1, 1] and about channels first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frames_to_model(frames: Tensor) -> Tensor:
    """Turn uint8 frames ``[..., H, W, C]`` (0..255) into float32 frames ``[..., C, H, W]`` in [-1, 1].

    Raises:
        TypeError: if ``frames`` is not uint8.
        ValueError: if ``frames`` has fewer than three axes.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}; expected torch.uint8 (0..255, channels last).")
    if frames.ndim < 3:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected [..., height, width, channels].")
    return frames.movedim(-1, -3).float().mul(2 / 255).sub(1)


def model_to_frames(frames: Tensor) -> Tensor:
    """Turn float frames ``[..., C, H, W]`` in [-1, 1] into uint8 frames ``[..., H, W, C]``; outside values saturate."""
    return frames.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def quantize(frames: Tensor) -> Tensor:
    """Round float frames to the nearest of the 256 levels, so that they survive a round trip through uint8 exactly."""
    return frames_to_model(model_to_frames(frames))
