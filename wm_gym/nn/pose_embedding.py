"""Planar poses (x, y, cos heading, sin heading) as features of frames, and of the directions that tokens look in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import Poses
from wm_gym.nn.config import WorldModelConfig

WAVELENGTHS = (40.0, 20.0, 10.0, 5.0, 2.5, 1.25)  # cells; the longest is twice the extent of a maze seen from inside
NUM_HARMONICS = 8  # of an angle: the finest has a wavelength of 45 degrees
FIELD_OF_VIEW = math.radians(80)  # where the learned directions of the columns begin; that of Memory Maze's camera
_FEATURES = 4 * len(WAVELENGTHS) + 2 * NUM_HARMONICS


class PlanarFeatures(nn.Module):
    """Sines and cosines of positions ``[..., 2]`` and angles ``[...]`` in radians, ``[..., 40]``, float32."""

    frequency: Tensor
    harmonic: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Buffers, for what is captured in a CUDA graph must not copy constants from the host.
        self.register_buffer("frequency", math.tau / torch.tensor(WAVELENGTHS), persistent=False)
        self.register_buffer("harmonic", torch.arange(1.0, NUM_HARMONICS + 1), persistent=False)

    def forward(self, position: Tensor, angle: Tensor) -> Tensor:
        multiple = angle.float()[..., None] * self.harmonic
        return torch.cat([self.of_lengths(position), multiple.cos(), multiple.sin()], dim=-1)

    def of_lengths(self, lengths: Tensor) -> Tensor:
        """Of two lengths ``[..., 2]`` alone, ``[..., 24]``."""
        phase = (lengths.float()[..., None] * self.frequency).flatten(-2)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class PlanarPose(nn.Module):
    """A frame's pose ``[..., 4]`` as ``[..., condition_width]``."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.features = PlanarFeatures()
        self.mlp = nn.Sequential(nn.Linear(_FEATURES, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, pose: Poses) -> Tensor:
        return self.mlp(self.features(pose[..., :2], heading_angle(pose)))


class RayEmbedding(nn.Module):
    """Where each token looks from, and in which direction: the same wall has the same direction in whatever column.

    A token's direction is the heading plus an angle of its column, which is learned; its row is embedded as such.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        columns, width = config.token_columns, config.width
        offset = 1 - (2 * torch.arange(columns) + 1) / columns  # of the image plane, left positive
        self.column_angles = nn.Parameter(torch.atan(offset * math.tan(FIELD_OF_VIEW / 2)))
        self.features = PlanarFeatures()
        self.hidden = nn.Linear(_FEATURES, width)
        self.line = nn.Linear(4 * len(WAVELENGTHS), width, bias=False) if config.ray_lines else None
        self.row = nn.Parameter(torch.randn(config.token_rows, width) * 0.1)
        self.out = nn.Linear(width, width)

    def forward(self, pose: Poses) -> Tensor:
        """``[B, T, 4]`` to ``[B, T, rows, columns, D]``."""
        angle = heading_angle(pose)[..., None] + self.column_angles
        position = pose[..., None, :2].expand(*angle.shape, 2)
        hidden = self.hidden(self.features(position, angle))
        if self.line is not None:
            hidden = hidden + self.line(self.features.of_lengths(line_of_sight(position, angle)))
        return self.out(F.silu(hidden[..., None, :, :] + self.row[:, None].to(hidden.dtype)))


def line_of_sight(position: Tensor, angle: Tensor) -> Tensor:
    """The line through a position ``[..., 2]`` in direction ``angle`` ``[...]`` (radians), as two lengths ``[..., 2]``.

    The first is how far to the left of the line the origin lies, the same all along it; the second how far along it
    the position is.
    """
    x, y = position.float().unbind(-1)
    cos, sin = angle.float().cos(), angle.float().sin()
    return torch.stack([x * sin - y * cos, x * cos + y * sin], dim=-1)


def heading_angle(pose: Poses) -> Tensor:
    """Radians ``[...]`` of poses ``[..., 4]``, counter-clockwise from the x axis."""
    return torch.atan2(pose[..., 3].float(), pose[..., 2].float())
