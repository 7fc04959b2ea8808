"""What a sight of the grid on which walls stand adds to a walk that is followed motion by motion.

Motions add up, and so do their errors. Where walls stand on a grid of unit cells, as in Memory Maze, a frame shows
position and heading up to whole cells and quarter turns, after a thousand frames as well as after one. An extended
Kalman filter (Smith, Self & Cheeseman 1990) weighs the two: its state is where the grid lies, as seen from the first
frame of the walk, beside the newest pose, with the covariance of both. So at first the grid is found, and later drift
is undone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wm_gym.array_typing import Pose, Poses
from wm_gym.ops.step import Backend, uses_triton
from wm_gym.poses import motion_between, moved, placed

QUARTER = math.pi / 2
NUM_ANGLES = 5  # the heading times four; along and across in each of the two conventions, in turns of a cell
SIGHT_SIZE = 2 * NUM_ANGLES
_SIZE = 6  # x, y and turn of the grid, x, y and turn of the pose
GRID_STATE_SIZE = 3 + _SIZE * _SIZE + 1  # where the grid lies, the covariance, and whether it was seen at all
ALIKE = 4.0  # frames in a row look alike and are wrong alike: each counts as a fraction of an independent one
OFF_CELLS, OFF_RADIANS = 0.003, 0.003  # standard deviations of what is wrong with one motion
_SURPRISE = 3.0  # standard deviations, beyond which a sight counts less
_LEAST_CERTAIN = 1e-3  # concentration below which a sight says nothing
_UNKNOWN = 100.0  # times the variance of the first sight: before it, nothing is known ...
_MOST_UNKNOWN = 1.0  # ... but that it is some place in a cell, and some part of a quarter turn


def grid_angles(pose: Poses) -> Tensor:
    """What a sight shows of a pose ``[..., 4]`` on the grid: angles ``[..., 5]``.

    The heading times four; then, in turns of a cell, the positions along and across the axis that the heading is taken
    to be near: the last one passed (counter-clockwise), and the nearest one. Either jumps somewhere, not in the same
    place.
    """
    heading = torch.atan2(pose[..., 3], pose[..., 2])
    angles = [4 * heading]
    for ahead in (0.0, QUARTER / 2):
        angles += [math.tau * part for part in along_axes(pose, axis_of(heading, ahead))]
    return torch.stack(angles, dim=-1)


def counted_angles(pose: Poses, margin: float = math.radians(12.5)) -> Tensor:
    """Which of `grid_angles` a sight can show, and are used: bool ``[..., 5]``; `margin` more than are used."""
    off = _off_diagonal(torch.atan2(pose[..., 3], pose[..., 2]))
    passed, nearest = off < QUARTER / 4 + margin, off > QUARTER / 4 - margin
    return torch.stack([torch.ones_like(passed), passed, passed, nearest, nearest], dim=-1)


def grid_pose(state: Tensor, pose: Tensor) -> Tensor:
    """A pose ``[..., 4]`` as it lies on the grid, by the filter's state ``[..., GRID_STATE_SIZE]``."""
    x, y, turn = state[..., 0], state[..., 1], state[..., 2]
    grid = torch.stack([x, y, turn.cos(), turn.sin()], dim=-1)
    return placed(grid, pose)


def filtered_poses(
    state: Tensor, pose: Pose, followed: Poses, sights: Tensor, *, backend: Backend = "auto"
) -> tuple[Poses, Tensor]:
    """Poses of the frames that follow T frames, when each of these shows its bearings.

    Args:
        state: ``[B, GRID_STATE_SIZE]``, of the first frame; zeros where no grid was seen yet.
        pose: of that frame, ``[B, 4]``.
        followed: the poses of the frames that follow by motions alone, from any first one, ``[B, T + 1, 4]``.
        sights: of the T frames, ``[B, T, SIGHT_SIZE]``; for each of `grid_angles` a vector in its direction, the longer
            the more certain (a von Mises distribution's concentration). 0 says nothing.

    Returns:
        ``[B, T, 4]``, and the state of the last of them.
    """
    motions = motion_between(followed[:, :-1], followed[:, 1:])
    vectors = sights.unflatten(-1, (NUM_ANGLES, 2))
    told, length = torch.atan2(vectors[..., 1], vectors[..., 0]), vectors.norm(dim=-1)
    counts = (length > _LEAST_CERTAIN).to(length.dtype)
    variance = ALIKE / length.clamp(min=_LEAST_CERTAIN)  # of angles; of headings and of places it is less
    variance = torch.cat([variance[..., :1] / 16, variance[..., 1:] / math.tau**2], dim=-1)
    if uses_triton(sights.device, backend):
        from wm_gym.ops.odometry.bearings_kernel import grid_filter

        planar = torch.cat([pose[:, :2], torch.atan2(pose[:, 3:], pose[:, 2:3])], dim=-1)
        constants = OFF_CELLS, OFF_RADIANS, _SURPRISE, _UNKNOWN, _MOST_UNKNOWN
        return grid_filter(state, planar, motions, told, variance, counts, *constants)
    poses = []
    for t, motion in enumerate(motions.unbind(1)):
        state, pose = _with_sight(state, pose, told[:, t], variance[:, t], counts[:, t])
        there = moved(pose, motion)
        state = moved_on(state, there[:, :2] - pose[:, :2])
        pose = there
        poses.append(pose)
    return torch.stack(poses, dim=1), state


def _with_sight(state: Tensor, pose: Pose, told: Tensor, variance: Tensor, counts: Tensor) -> tuple[Tensor, Pose]:
    """State and pose when the sight of the pose's frame is counted in, ``[B, 5]`` each."""
    is_first = (counts[:, :1] > 0) & (state[:, -1:] == 0)
    state = torch.where(is_first, _first_sight(pose, told, variance), state)
    for part in range(3):
        state, pose = _with_angle(state, pose, told, variance, counts, part)
    return state, pose


def _first_sight(pose: Pose, told: Tensor, variance: Tensor) -> Tensor:
    """The state after the first sight of the grid, when the pose is what others are seen from."""
    heading = told[:, 0] / 4
    by_passed, axis = _convention(heading)
    along, across = torch.where(by_passed[:, None], told[:, 1:3], told[:, 3:5]).div(math.tau).unbind(1)
    turn = heading - torch.atan2(pose[:, 3], pose[:, 2])
    cos, sin = turn.cos(), turn.sin()
    x = axis.cos() * along - axis.sin() * across - (cos * pose[:, 0] - sin * pose[:, 1])
    y = axis.sin() * along + axis.cos() * across - (sin * pose[:, 0] + cos * pose[:, 1])
    # The filter then counts it in once more, by which it gets the trust that it deserves.
    own = torch.where(by_passed[:, None], variance[:, 1:3], variance[:, 3:5])
    spread = (_UNKNOWN * torch.cat([own, variance[:, :1]], dim=1)).clamp(max=_MOST_UNKNOWN)
    spread = torch.cat([spread, torch.zeros_like(spread)], dim=1)
    known = torch.ones_like(turn)[:, None]
    return torch.cat([x[:, None], y[:, None], turn[:, None], torch.diag_embed(spread).flatten(1), known], dim=1)


def _with_angle(
    state: Tensor, pose: Pose, told: Tensor, variance: Tensor, counts: Tensor, part: int
) -> tuple[Tensor, Pose]:
    """`_with_sight` for one number: the heading, or the position along or across its axis."""
    turn, seen = state[:, 2], state[:, -1:]
    on_grid = grid_pose(state, pose)
    heading = torch.atan2(on_grid[:, 3], on_grid[:, 2])
    none, one = torch.zeros_like(turn), torch.ones_like(turn)
    if part == 0:
        error = _wrapped(told[:, 0] - 4 * heading) / 4
        noise, counted = variance[:, 0], counts[:, 0]
        slope = torch.stack([none, none, one, none, none, one], dim=1)
    else:
        by_passed, axis = _convention(heading)
        own = along_axes(on_grid, axis)[part - 1]
        error = _wrapped(torch.where(by_passed, told[:, part], told[:, part + 2]) - math.tau * own) / math.tau
        noise = torch.where(by_passed, variance[:, part], variance[:, part + 2])
        counted = torch.where(by_passed, counts[:, part], counts[:, part + 2])
        if part == 2:
            axis = axis + QUARTER
        cos, sin = axis.cos(), axis.sin()
        arm = on_grid[:, :2] - state[:, :2]  # from where the grid is seen to where the agent is
        relative = axis - turn
        slope = torch.stack([cos, sin, sin * arm[:, 0] - cos * arm[:, 1], relative.cos(), relative.sin(), none], dim=1)
    covariance = state[:, 3:-1].view(-1, _SIZE, _SIZE)
    spread = (covariance @ slope[..., None]).squeeze(-1)
    expected = (slope * spread).sum(1)
    total = expected + noise
    # A sight far from what is expected is more often wrong than right.
    total = total * (error.square() / (_SURPRISE**2 * total)).clamp(min=1)
    gain = seen * counted[:, None] * spread / total[:, None]
    change = gain * error[:, None]
    covariance = covariance - gain[:, :, None] * spread[:, None, :]
    place = pose[:, :2] + change[:, 3:5]
    turned = moved(torch.cat([place, pose[:, 2:]], dim=1), torch.cat([torch.zeros_like(place), change[:, 5:]], dim=1))
    return torch.cat([state[:, :3] + change[:, :3], covariance.flatten(1), seen], dim=1), turned


def moved_on(state: Tensor, offset: Tensor) -> Tensor:
    """The state of the next pose, `offset` ``[B, 2]`` further: what is wrong with the turn is wrong with the way."""
    covariance = state[:, 3:-1].view(-1, _SIZE, _SIZE)
    lever = torch.stack([-offset[:, 1], offset[:, 0]], dim=1)
    row = covariance[:, 3:5] + lever[:, :, None] * covariance[:, 5:]
    covariance = torch.cat([covariance[:, :3], row, covariance[:, 5:]], dim=1)
    column = covariance[:, :, 3:5] + lever[:, None, :] * covariance[:, :, 5:]
    covariance = torch.cat([covariance[:, :, :3], column, covariance[:, :, 5:]], dim=2)
    ones = torch.ones_like(offset[:, :1])
    noise = torch.cat([0 * ones.expand(-1, 3), OFF_CELLS**2 * ones.expand(-1, 2), OFF_RADIANS**2 * ones], dim=1)
    covariance = covariance + state[:, -1:, None] * torch.diag_embed(noise)
    return torch.cat([state[:, :3], covariance.flatten(1), state[:, -1:]], dim=1)


def _convention(heading: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a heading is far from where its last axis was passed, and the axis that it is taken to be near."""
    by_passed = _off_diagonal(heading) < QUARTER / 4
    return by_passed, torch.where(by_passed, axis_of(heading, 0.0), axis_of(heading, QUARTER / 2))


def axis_of(heading: Tensor, ahead: float) -> Tensor:
    """The multiple of a quarter turn that was passed last by a heading, or by one that is `ahead` of it."""
    return ((heading + ahead) / QUARTER).floor() * QUARTER


def along_axes(pose: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Positions along an axis, an angle ``[...]``, and across it, to its left."""
    cos, sin = axis.cos(), axis.sin()
    x, y = pose[..., 0], pose[..., 1]
    return x * cos + y * sin, y * cos - x * sin


def _off_diagonal(heading: Tensor) -> Tensor:
    """How far a heading is from halfway between two axes, 0 to an eighth of a turn."""
    return (heading.remainder(QUARTER) - QUARTER / 2).abs()


def _wrapped(angle: Tensor) -> Tensor:
    return (angle + math.pi).remainder(math.tau) - math.pi
