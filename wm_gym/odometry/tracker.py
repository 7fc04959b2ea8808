"""Follows the poses of frames that a memory takes in, whether they are given or have to be predicted."""

from __future__ import annotations

import torch

from wm_gym.array_typing import Actions, FrameMap, FrameMask, ModelFrames, OdometryState, Pose, Poses
from wm_gym.nn.state import ModelState
from wm_gym.odometry.protocol import Odometry


def locate(
    odometry: Odometry | None, state: ModelState, frames: ModelFrames, actions: Actions, pose: Poses | None
) -> tuple[Poses | None, OdometryState | None]:
    """Poses of frames that follow a memory, and the odometry of the last of them.

    Args:
        odometry: of the model; None: poses are as given, if they are.
        state: the memory.
        frames: ``[B, T, C, H, W]`` in [-1, 1]; the last one is not looked at.
        actions: that led to each of the frames, ``[B, T]`` or ``[B, T, A]``.
        pose: of the frames, ``[B, T, P]``; None: they are predicted.

    Raises:
        ValueError: the memory is of a model without odometry.
    """
    if odometry is None:
        return pose, None
    pending, batch, length = state.pending, state.batch_size, frames.shape[1]
    real = torch.ones(batch, length, dtype=torch.bool, device=frames.device)
    place_map = None
    if pending is None:
        carried = odometry.initial_state(batch, frames.device)
        before = odometry.first_pose(batch, frames.device) if pose is None else pose[:, 0]
        seen, actions, real = frames[:, :-1], actions[:, 1:], real[:, 1:]
        pose = None if pose is None else pose[:, 1:]
    elif pending.odometry is None or pending.pose is None:
        raise ValueError("the state comes from a model without odometry; prefill a new one.")
    else:
        carried, before, place_map = pending.odometry, pending.pose, state.place_map
        seen = torch.cat([pending.frame[:, None], frames[:, :-1]], dim=1)
        real[:, 0] = ~pending.dreamed
    if pose is not None:
        poses = torch.cat([before[:, None], pose], dim=1)
        carried = odometry.given(carried, poses, actions)
    else:
        poses, carried = _followed(odometry, carried, seen, actions, before, real, place_map)
    return poses[:, -length:], carried


def _followed(
    odometry: Odometry,
    carried: OdometryState,
    seen: ModelFrames,
    actions: Actions,
    before: Pose,
    real: FrameMask,
    place_map: FrameMap | None,
) -> tuple[Poses, OdometryState]:
    """The pose `before` and those that actions at T frames lead to, ``[B, T + 1, 4]``; and the odometry of the last."""
    poses = before[:, None]
    if place_map is not None and seen.shape[1]:  # only the first frame may be dreamed, and a map shows more than it
        first = seen[:, 0], actions[:, 0], before, real[:, 0]
        predicted, carried = odometry.predict(carried, *first, place_map)
        poses = torch.cat([poses, predicted[:, None]], dim=1)
        seen, actions, real = seen[:, 1:], actions[:, 1:], real[:, 1:]
    if seen.shape[1]:
        predicted, carried = odometry.follow(carried, seen, actions, poses[:, -1], real)
        poses = torch.cat([poses, predicted], dim=1)
    return poses, carried
