"""Odometry of dreams whose memory has a map: the map shows what stands in the way on all sides.

A dreamed frame shows what belongs to its pose, and only ahead; walls stop an agent, and slow its turns, on all sides.
The map around the pose holds them, so motions in a dream are predicted from it, recent motions and actions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import FrameMap, Pose, Poses
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.map_memory import map_shape, read_map, seen_of
from wm_gym.poses import MOTION_SIZE, moved

_POINT_WIDTH = 6
_WIDTH = 64
_OUT_SCALE = 0.1


class MapOdometry(nn.Module):
    """Predicts the motion to the next frame (`MotionByMap`). In float32.

    Args:
        config: of a model with a map.
        num_actions: numbers of the newest and the past actions together.
    """

    points: Tensor

    def __init__(self, config: WorldModelConfig, num_actions: int) -> None:
        super().__init__()
        self.config = config
        reach = config.odometry.touch_reach
        side = config.odometry.touch_spacing * torch.arange(-reach, reach + 1)
        self.register_buffer("points", torch.cartesian_prod(side, side), persistent=False)
        self.point = nn.Linear(map_shape(config)[1], _POINT_WIDTH)
        self.around = nn.Linear(len(self.points) * _POINT_WIDTH, _WIDTH)
        self.enter = nn.Linear(num_actions + 2 * MOTION_SIZE, _WIDTH)
        self.hidden = nn.Linear(_WIDTH, _WIDTH)
        self.out = nn.Linear(_WIDTH, MOTION_SIZE)
        # In free space motion is close to linear in what it was and in the action.
        self.straight = nn.Linear(num_actions + 2 * MOTION_SIZE, MOTION_SIZE)
        with torch.no_grad():
            for layer in (self.out, self.straight):
                layer.weight.mul_(_OUT_SCALE)
                layer.bias.zero_()

    def forward(
        self, place_map: FrameMap, pose: Poses, recent: Tensor, actions: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Motions ``[B, T, 3]`` that lead on from poses ``[B, T, 4]``.

        Args:
            place_map: ``[B, G * G, V + 1]``, the same at all poses of a row, or M of them.
            recent: the motions to each pose and to the one before, ``[B, T, 6]``.
            actions: the ones before, the oldest first, and the newest, as numbers, ``[B, T, num_actions]``.
            rows: which of the M maps each row reads, int64 ``[B]``; None: its own.
        """
        batch, length = pose.shape[:2]
        heading, left = pose[..., None, 2:], torch.stack([-pose[..., 3], pose[..., 2]], dim=-1)[..., None, :]
        points = pose[..., None, :2] + self.points[:, :1] * heading + self.points[:, 1:] * left
        seen = seen_of(read_map(self.config, place_map, points.flatten(1, 2), rows))
        nearby = F.silu(self.point(seen)).view(batch, length, -1)
        inputs = torch.cat([recent * self.config.odometry.motion_scale, actions], dim=-1)
        x = F.silu(self.hidden(F.silu(self.around(nearby) + self.enter(inputs))))
        return self.out(x) + self.straight(inputs)

    def step(
        self, place_map: FrameMap, pose: Pose, recent: Tensor, actions: Tensor, grid: Tensor | None = None
    ) -> tuple[Pose, Tensor]:
        """See `MotionByMap.step`; a grid is not used."""
        motion = self(place_map, pose[:, None], recent[:, None], actions[:, None])[:, 0]
        return moved(pose, motion), torch.cat([motion, recent[:, :MOTION_SIZE]], dim=-1)
