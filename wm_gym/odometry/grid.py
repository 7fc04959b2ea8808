"""A prior written by hand for Memory Maze: walls fill cells of a unit grid, and the agent is a disc that they stop.

Which cells are walls is read from the map. Without walls the next motion is close to linear in the last ones and the
actions; walls that this would lead into push the disc out again, which is geometry, and what contact does beside that
(it slows turns, and lets go late) is learned. Contact is sharp, and may begin and end within one motion, so that is
predicted in parts, each from what the one before met. Everything is in directions of the grid, with the agent looking
along the first one or at most an eighth of a turn beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import FrameMap, Pose, Poses
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.map_memory import map_shape, read_map, seen_of
from wm_gym.ops.odometry.bearings import QUARTER, along_axes, axis_of
from wm_gym.poses import MOTION_SIZE, moved

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1))
AROUND = (*SIDES, (1, 1), (1, -1), (-1, 1), (-1, -1))  # the cells around the agent's own
_PATCH_SIDE, _PATCH_STEP = 5, 0.3  # points around the middle of a cell, and cells between them
_POINT_WIDTH, _WALL_WIDTH, _FREE_WIDTH, _WIDTH = 8, 64, 64, 128
_PARTS = 4  # of a motion
_KEPT = 16  # numbers that one part leaves to the next
_FIRST_RADIUS = 0.1  # cells
_PLACE_SCALE, _DEPTH_SCALE = 4.0, 10.0  # inputs should be of order 1
_OUT_SCALE = 0.1
# Logit from which on a cell is taken for a wall: where nobody looked it is free, for an agent that is stopped by a wall
# that is none is lost sooner than one that walks through a wall that nobody saw.
_SURE = 4.0


class InCell(NamedTuple):
    """Where an agent is in its cell, each ``[B, T]``.

    Attributes:
        along, across: of the middle of the cell, -0.5 to 0.5, along the axis that it looks along most and to the left.
        angle: of its heading, from that axis; at most an eighth of a turn.
        axis: the angle of that axis on the grid.
    """

    along: Tensor
    across: Tensor
    angle: Tensor
    axis: Tensor


class GridOdometry(nn.Module):
    """Predicts the motion to the next frame (`MotionByMap`). In float32.

    Args:
        config: of a model with a map, whose odometry takes bearings.
        num_actions: numbers of the newest and the past actions together.
    """

    patch: Tensor
    around: Tensor

    def __init__(self, config: WorldModelConfig, num_actions: int) -> None:
        super().__init__()
        self.config = config
        side = _PATCH_STEP * (torch.arange(_PATCH_SIDE) - _PATCH_SIDE // 2)
        self.register_buffer("patch", torch.cartesian_prod(side, side), persistent=False)
        self.register_buffer("around", torch.tensor(AROUND, dtype=torch.float32), persistent=False)
        self.point = nn.Linear(map_shape(config)[1], _POINT_WIDTH)
        self.cell = nn.Linear(len(self.patch) * _POINT_WIDTH, _WALL_WIDTH)
        self.wall = nn.Linear(_WALL_WIDTH, 1)
        size = num_actions + 2 * MOTION_SIZE
        self.straight = nn.Linear(size, MOTION_SIZE)
        self.bend = nn.Linear(size, _FREE_WIDTH)
        self.free = nn.Linear(_FREE_WIDTH, MOTION_SIZE)
        self.radius = nn.Parameter(torch.tensor(_FIRST_RADIUS))
        self.enter = nn.Linear(size + MOTION_SIZE + len(AROUND), _WIDTH)
        self.part = nn.Linear(MOTION_SIZE + len(AROUND) + 4 + _KEPT, _WIDTH, bias=False)
        self.deep = nn.Linear(_WIDTH, _WIDTH)
        self.out = nn.Linear(_WIDTH, MOTION_SIZE + _KEPT)
        with torch.no_grad():
            for layer in (self.out, self.straight, self.free):
                layer.weight.mul_(_OUT_SCALE)
                layer.bias.zero_()

    def forward(
        self,
        place_map: FrameMap,
        pose: Poses,
        recent: Tensor,
        actions: Tensor,
        rows: Tensor | None = None,
        grid: Tensor | None = None,
    ) -> Tensor:
        """Motions ``[B, T, 3]`` that lead on from poses ``[B, T, 4]``.

        Args:
            place_map, recent, actions, rows: as of `MapOdometry.forward`.
            grid: the poses as they lie on the grid of walls, and 1 where that is known, else 0, ``[B, T, 5]``. Where it
                is not, or None, no walls are known either.
        """
        if grid is None:
            grid = torch.cat([pose, torch.zeros_like(pose[..., :1])], dim=-1)
        place = in_cell(grid[..., :4])
        walls = (self.walls(place_map, pose, place, rows) > _SURE) & (grid[..., 4:] > 0)
        return self.moves(place, walls.to(pose.dtype), recent, actions)

    def walls(self, place_map: FrameMap, pose: Poses, place: InCell, rows: Tensor | None = None) -> Tensor:
        """Logits ``[B, T, 8]`` of walls in the cells `AROUND`, by what is written in the map there."""
        batch, length = pose.shape[:2]
        own = torch.stack([place.along, place.across], dim=-1)
        offsets = self.around[:, None] + self.patch - own[..., None, None, :]  # [B, T, 8, points, 2]
        turn = torch.atan2(pose[..., 3], pose[..., 2]) - place.angle  # from the grid's axis to the map's
        cos, sin = turn.cos()[..., None, None], turn.sin()[..., None, None]
        x = pose[..., 0, None, None] + cos * offsets[..., 0] - sin * offsets[..., 1]
        y = pose[..., 1, None, None] + sin * offsets[..., 0] + cos * offsets[..., 1]
        points = torch.stack([x, y], dim=-1).flatten(1, 3)
        seen = F.silu(self.point(seen_of(read_map(self.config, place_map, points, rows))))
        cells = seen.view(batch, length, len(AROUND), -1)
        return self.wall(F.silu(self.cell(cells))).squeeze(-1)

    def moves(self, place: InCell, walls: Tensor, recent: Tensor, actions: Tensor) -> Tensor:
        """Motions ``[B, T, 3]``; `walls` are 1 in those of the cells `AROUND` that are, else 0, ``[B, T, 8]``."""
        scale = self.config.odometry.motion_scale
        inputs = torch.cat([recent * scale, actions], dim=-1)
        free = self.straight(inputs) + self.free(F.silu(self.bend(inputs)))
        steady = self.enter(torch.cat([inputs, free * scale, walls], dim=-1))
        along, across, angle = place.along, place.across, place.angle
        speed, depths = free / _PARTS, torch.zeros_like(walls)
        kept = walls.new_zeros(*walls.shape[:-1], _KEPT)
        for _ in range(_PARTS):
            where = torch.stack([along, across], dim=-1) * _PLACE_SCALE
            turned = torch.stack([angle, angle.sin()], dim=-1) * scale
            met = depths * (_PARTS * _DEPTH_SCALE)
            now = torch.cat([speed * (_PARTS * scale), met, where, turned, kept], dim=-1)
            x = F.silu(steady + self.part(now))
            change, left = self.out(x + F.silu(self.deep(x))).split((MOTION_SIZE, _KEPT), dim=-1)
            speed, kept = speed + change / _PARTS, kept + left
            along, across, speed, depths = self._led(along, across, angle, speed, walls)
            angle = angle + speed[..., 2]
        ahead, aside = turned_to(place.angle, along - place.along, across - place.across)
        return torch.stack([ahead, aside, angle - place.angle], dim=-1)

    def _led(
        self, along: Tensor, across: Tensor, angle: Tensor, speed: Tensor, walls: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where a part of a motion leads beside walls, and the speed then; depths as of `pushed_out`."""
        by_along, by_across = turned_to(-angle, speed[..., 0], speed[..., 1])
        free_along, free_across = along + by_along, across + by_across
        along, across, depths = pushed_out(free_along, free_across, walls, self.radius)
        ahead, left = turned_to(angle, along - free_along, across - free_across)
        return along, across, speed + torch.stack([ahead, left, torch.zeros_like(ahead)], dim=-1), depths

    def step(
        self, place_map: FrameMap, pose: Pose, recent: Tensor, actions: Tensor, grid: Tensor | None = None
    ) -> tuple[Pose, Tensor]:
        """See `MotionByMap.step`."""
        grid = None if grid is None else grid[:, None]
        motion = self(place_map, pose[:, None], recent[:, None], actions[:, None], grid=grid)[:, 0]
        return moved(pose, motion), torch.cat([motion, recent[:, :MOTION_SIZE]], dim=-1)


def in_cell(grid: Poses) -> InCell:
    """Where poses ``[..., 4]`` on the grid are in their cells."""
    heading = torch.atan2(grid[..., 3], grid[..., 2])
    axis = axis_of(heading, QUARTER / 2)
    along, across = along_axes(grid, axis)
    return InCell(along - along.floor() - 0.5, across - across.floor() - 0.5, heading - axis, axis)


def turned_to(angle: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A vector ``[...]`` in the directions of one who looks along `angle`."""
    cos, sin = angle.cos(), angle.sin()
    return cos * x + sin * y, cos * y - sin * x


def walls_around(layouts: Tensor, grid: Poses, place: InCell) -> Tensor:
    """Which of the cells `AROUND` are walls, float ``[B, T, 8]``; outside of the maze all are.

    Args:
        layouts: ``[B, n, n]``, indexed [y, x], 1 where there is a wall.
        grid: poses ``[B, T, 4]`` on the grid, in the maze, and where they are in their cells.
    """
    padded = F.pad(layouts, (1, 1, 1, 1), value=1)
    cos, sin = place.axis.cos().round().long()[..., None], place.axis.sin().round().long()[..., None]
    ahead, left = torch.tensor(AROUND, device=grid.device).unbind(1)
    x = grid[..., :1].floor().long() + 1 + ahead * cos - left * sin
    y = grid[..., 1:2].floor().long() + 1 + ahead * sin + left * cos
    size = padded.shape[-1]
    index = (y.clamp(0, size - 1) * size + x.clamp(0, size - 1)).flatten(1)
    return padded.flatten(1).gather(1, index).view(x.shape).float()


def pushed_out(along: Tensor, across: Tensor, walls: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a disc that was at ``[...]`` in its cell, or somewhat beyond, comes to lie beside the walls around it.

    Returns:
        Along, across, and how deep it was in each of the walls, ``[..., 8]``.
    """
    # Of two opposite sides, and of the corners, only one can push: all are computed at once.
    point = torch.stack([along, across], dim=-1)
    sides = walls[..., : len(SIDES)].unflatten(-1, (2, 2)) * F.relu(torch.stack([point, -point], dim=-1) - 0.5 + radius)
    along, across = (point - sides[..., 0] + sides[..., 1]).unbind(-1)
    front, back = along - along.clamp(0.5, 1.5), along - along.clamp(-1.5, -0.5)
    left, right = across - across.clamp(0.5, 1.5), across - across.clamp(-1.5, -0.5)
    by_along = torch.stack([front, front, back, back], dim=-1)
    by_across = torch.stack([left, right, left, right], dim=-1)
    distance = (by_along.square() + by_across.square() + 1e-8).sqrt()
    corners = walls[..., len(SIDES) :] * F.relu(radius - distance)
    push = corners / distance
    along, across = along + (push * by_along).sum(-1), across + (push * by_across).sum(-1)
    return along, across, torch.cat([sides.flatten(-2), corners], dim=-1)
