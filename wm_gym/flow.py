"""Noise levels, interpolation between frame and noise, and samplers over a denoise callable.

A noise level is in [0, 1]: 0 is the clean frame, 1 is pure noise, with the straight path of rectified flow between them
(Liu et al. 2022, arXiv 2209.03003). A denoise callable maps (noisy frame, noise level) to a prediction of the
clean frame; samplers know nothing else about the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from wm_gym.array_typing import ModelFrame, NoiseLevel, RowCount

Denoise = Callable[[ModelFrame, NoiseLevel], ModelFrame]


def expand_level(noise_level: Tensor, frame: Tensor) -> Tensor:
    """Append axes to ``noise_level`` until it broadcasts against ``frame`` (levels match the leading axes)."""
    return noise_level.reshape(noise_level.shape + (1,) * (frame.ndim - noise_level.ndim))


def add_noise(frame: Tensor, noise: Tensor, noise_level: Tensor) -> Tensor:
    """``(1 - noise_level) * frame + noise_level * noise``; levels match the leading axes of ``frame``."""
    level = expand_level(noise_level, frame).to(frame.dtype)
    return frame + level * (noise - frame)


def linear_schedule(num_denoising_steps: int) -> tuple[float, ...]:
    """Noise levels from 1 down to 0, evenly spaced, ``num_denoising_steps + 1`` of them.

    Raises:
        ValueError: if ``num_denoising_steps`` is not a positive whole number.
    """
    if not isinstance(num_denoising_steps, int) or num_denoising_steps < 1:
        raise ValueError(f"num_denoising_steps is {num_denoising_steps!r}; expected a whole number of at least 1.")
    return tuple(1 - i / num_denoising_steps for i in range(num_denoising_steps + 1))


def euler_update(noisy: Tensor, clean: Tensor, level: float, next_level: float) -> Tensor:
    """Move along the straight path from ``level`` to ``next_level``, given a prediction of the clean frame.

    The path's velocity is ``(noisy - clean) / level`` (arXiv 2209.03003); at ``next_level`` 0 the result is ``clean``.
    """
    return torch.lerp(clean, noisy, next_level / level)


def euler_sampler(denoise: Denoise, noise: ModelFrame, schedule: tuple[float, ...]) -> ModelFrame:
    """Solve from pure noise to a clean frame with one call of ``denoise`` for each interval of ``schedule``."""
    frame = noise
    for level, next_level in itertools.pairwise(schedule):
        clean = denoise(frame, frame.new_full((frame.shape[0],), level))
        frame = euler_update(frame, clean, level, next_level)
    return frame


def draw_noise(shape: tuple[int, ...], source: Generator | Sequence[Generator] | ModelFrame) -> ModelFrame:
    """Pure noise of a shape ``[B, C, H, W]``: as it is given, or from a generator, or from one generator per row.

    Raises:
        TypeError: given noise that is not floating-point.
        ValueError: given noise of another shape, or another number of generators.
    """
    if isinstance(source, Tensor):
        if not source.is_floating_point():
            raise TypeError(f"noise is {source.dtype}; expected a float dtype.")
        if tuple(source.shape) != shape:
            raise ValueError(f"noise of a frame has shape {tuple(source.shape)}; expected {shape}.")
        return source.float()
    if isinstance(source, Generator):
        return torch.randn(shape, generator=source, device=source.device)
    if len(source) != shape[0]:
        raise ValueError(f"{len(source)} generators given for {shape[0]} rows; give one, or one per row.")
    return torch.stack([torch.randn(shape[1:], generator=each, device=each.device) for each in source])


def feedback_level(index: RowCount, interval: int, device: torch.device) -> NoiseLevel:
    """Noise level at which a dreamed frame enters memory: 0 every `interval` frames, else 1; see `WorldModelConfig`.

    Args:
        index: number of the frame since the first one of its dream, context included, int64 ``[B]``.
        interval: 1: every frame enters as it is; 0: none does.
        device: of the result. If the index lies elsewhere, only an interval above 1 copies anything, which a CUDA
            graph could not capture.
    """
    if interval <= 1:
        return torch.full(index.shape, float(interval == 0), device=device)
    return (index % interval != 0).float().to(device)
