"""Bearings: where in its cell a frame is seen from, at which angle to the walls; for mazes on a grid of unit cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wm_gym.array_typing import ModelFrames
from wm_gym.nn.config import WorldModelConfig
from wm_gym.ops.odometry.bearings import SIGHT_SIZE

_CHANNELS = (16, 32, 48, 48)  # of the convolutions, each of which halves the frame
_WIDTH = 64


class Bearings(nn.Module):
    """Reads bearings from a single frame. In float32.

    Args:
        config: of the world model, for the shape of frames.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        channels, rows, columns = config.frame_channels, config.frame_height, config.frame_width
        layers: list[nn.Module] = []
        for index, width in enumerate(_CHANNELS):
            layers += [nn.Conv2d(channels, width, 3 if index else 4, 2, 1), nn.SiLU()]
            channels, rows, columns = width, _halved(rows, index), _halved(columns, index)
        self.view = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(channels * rows * columns, _WIDTH)
        self.out = nn.Linear(_WIDTH, SIGHT_SIZE)

    def forward(self, frames: ModelFrames) -> Tensor:
        """Sights ``[B, T, SIGHT_SIZE]`` of frames ``[B, T, C, H, W]`` in [-1, 1]."""
        views = self.view(frames.flatten(0, 1).float())
        hidden = nn.functional.silu(self.hidden(views))
        return self.out(hidden).view(*frames.shape[:2], SIGHT_SIZE)


def sight_cost(sights: Tensor, angles: Tensor, counted: Tensor) -> Tensor:
    """Mean negative log-likelihood of angles ``[..., 5]`` under the von Mises distributions of sights ``[..., 10]``.

    Args:
        counted: which of the angles count, bool ``[..., 5]``.
    """
    vectors = sights.unflatten(-1, (-1, 2))
    length = (vectors.square().sum(-1) + 1e-12).sqrt()
    fit = vectors[..., 0] * angles.cos() + vectors[..., 1] * angles.sin()
    cost = torch.special.i0e(length).log() + length + math.log(math.tau) - fit
    return (cost * counted).sum(-1).mean()


def _halved(size: int, index: int) -> int:
    return size // 2 if index == 0 else math.ceil(size / 2)
