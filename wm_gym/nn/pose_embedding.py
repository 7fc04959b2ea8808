"""Planar poses (x, y, cos heading, sin heading) as features of frames, and of the directions that tokens look in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import Poses
from wm_gym.nn.config import PoseConfig, WorldModelConfig

NUM_HARMONICS = 8  # of an angle: the finest has a wavelength of 45 degrees


class PlanarFeatures(nn.Module):
    """Sines and cosines of positions ``[..., 2]`` and angles ``[...]`` in radians, ``[..., size]``, float32."""

    frequency: Tensor
    harmonic: Tensor

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.length_size = 4 * len(config.wavelengths)
        self.size = self.length_size + 2 * NUM_HARMONICS
        # Buffers, for what is captured in a CUDA graph must not copy constants from the host.
        self.register_buffer("frequency", math.tau / torch.tensor(config.wavelengths), persistent=False)
        self.register_buffer("harmonic", torch.arange(1.0, NUM_HARMONICS + 1), persistent=False)

    def forward(self, position: Tensor, angle: Tensor) -> Tensor:
        """Joins the features of positions and of angles."""
        multiple = angle.float()[..., None] * self.harmonic
        return torch.cat([self.of_lengths(position), multiple.cos(), multiple.sin()], dim=-1)

    def of_lengths(self, lengths: Tensor) -> Tensor:
        """Of two lengths ``[..., 2]`` alone, ``[..., length_size]``."""
        phase = (lengths.float()[..., None] * self.frequency).flatten(-2)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class PlanarPose(nn.Module):
    """A frame's pose ``[..., 4]`` as ``[..., condition_width]``."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.features = PlanarFeatures(config.pose)
        self.mlp = nn.Sequential(nn.Linear(self.features.size, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, pose: Poses) -> Tensor:
        """Embeds poses ``[..., 4]``."""
        return self.mlp(self.features(pose[..., :2], heading_angle(pose)))


class RayEmbedding(nn.Module):
    """Where each token looks from, and in which direction: a thing has one direction, whatever column shows it.

    A token's direction is the heading plus an angle of its column, which is learned; its row is embedded as such.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        columns, width = config.token_columns, config.width
        self.column_angles = nn.Parameter(ray_angles(config.pose, columns))
        self.features = PlanarFeatures(config.pose)
        self.hidden = nn.Linear(self.features.size, width)
        self.line = nn.Linear(self.features.length_size, width, bias=False) if config.pose.ray_lines else None
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


def ray_angles(config: PoseConfig, num_rays: int) -> Tensor:
    """Directions of rays through the middles of equal parts of a frame's width, radians left of the heading ``[R]``."""
    offset = 1 - (2 * torch.arange(num_rays) + 1) / num_rays  # of the image plane, left positive
    return torch.atan(offset * math.tan(math.radians(config.field_of_view) / 2))


def heading_angle(pose: Poses) -> Tensor:
    """Radians ``[...]`` of poses ``[..., 4]``, counter-clockwise from the x axis."""
    return torch.atan2(pose[..., 3].float(), pose[..., 2].float())
