"""The recursion of odometry: motion after motion, and the poses that they lead to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.array_typing import Motions, Pose, Poses
from wm_gym.ops.step import Backend, uses_triton
from wm_gym.poses import MOTION_SIZE, POSE_SIZE, motion_between, moved


def odometry_scan(
    hidden: Tensor,
    out: Tensor,
    seen: Motions,
    has_previous: Tensor,
    recent: Tensor,
    pose: Pose,
    recur: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    last: Tensor,
    last_recent: Tensor,
    scale: float,
    surprise: float,
    *,
    backend: Backend = "auto",
) -> tuple[Poses, Tensor]:
    """Poses of the frames that follow T frames. No gradients: those go through `odometry_motions`.

    Args:
        hidden: what frames and actions contribute to the first hidden layer, ``[B, T, width]``.
        out: what actions contribute to the outputs, ``[B, T, 6]``: logits of how far to trust the eyes, and the motion
            to the next frame.
        seen: the motion to each frame as it looks, ``[B, T, 3]``.
        has_previous: 0 where nothing was seen, else 1, ``[B, T, 1]``.
        recent: the motion to the first frame and the one before it, ``[B, 6]``.
        pose: of the first frame, ``[B, 4]``.
        recur, inner, inner_bias, last, last_recent: weights ``[width, 9]``, ``[width, width]``, ``[width]``,
            ``[6, width]``, ``[6, 9]``.
        scale: by which recent motions are multiplied before they enter the network.
        surprise: difference between seen and predicted motion above which its size says little.

    Returns:
        Poses ``[B, T, 4]`` and the recent motions at the end ``[B, 6]``.
    """
    weights = (recur, inner, inner_bias, last, last_recent)
    if uses_triton(hidden.device, backend):
        from wm_gym.ops.odometry.motions_kernel import odometry_scan as kernel

        return kernel(hidden, out, seen, has_previous, recent, pose, *weights, scale, surprise)
    changes, motions, new_recent = odometry_motions(hidden, out, seen, has_previous, recent, *weights, scale, surprise)
    return follow_motions(pose, recent, changes, motions), new_recent


def odometry_motions(
    hidden: Tensor,
    out: Tensor,
    seen: Motions,
    has_previous: Tensor,
    recent: Tensor,
    recur: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    last: Tensor,
    last_recent: Tensor,
    scale: float,
    surprise: float,
) -> tuple[Motions, Motions, Tensor]:
    """Arguments as of `odometry_scan`.

    Returns:
        What is added to the motion that was predicted to lead to each frame, now that it is seen, ``[B, T, 3]``; the
        motion that is predicted to lead to the next one, ``[B, T, 3]``; and the recent motions at the end, ``[B, 6]``.
    """
    weights = (recur, inner, inner_bias, last, last_recent)
    before, changes, motions = [], [], []
    with torch.no_grad():
        for t in range(hidden.shape[1]):
            before.append(recent)
            change, motion = _step(
                hidden[:, t], out[:, t], seen[:, t], has_previous[:, t], recent, *weights, scale, surprise
            )
            recent = torch.cat([motion, recent[:, :MOTION_SIZE] + change], dim=-1)
            changes.append(change)
            motions.append(motion)
    if not torch.is_grad_enabled():
        return torch.stack(changes, dim=1), torch.stack(motions, dim=1), recent
    # Each motion is to be right whatever came before, so no gradients go back in time, where they would grow; and so
    # all steps are one.
    changed, predicted = _step(hidden, out, seen, has_previous, torch.stack(before, dim=1), *weights, scale, surprise)
    return changed, predicted, recent


def _step(
    hidden: Tensor,
    out: Tensor,
    seen: Motions,
    has_previous: Tensor,
    recent: Tensor,
    recur: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    last: Tensor,
    last_recent: Tensor,
    scale: float,
    surprise: float,
) -> tuple[Motions, Motions]:
    """A step of the recursion, or many that know what came before each, ``[..., width]`` and so on."""
    innovation = (seen - recent[..., :MOTION_SIZE]) * has_previous
    inputs = torch.cat([recent * scale, innovation / (innovation.abs() + surprise)], dim=-1)
    x = F.silu(F.linear(F.silu(hidden + F.linear(inputs, recur)), inner, inner_bias))
    gate, motion = (out + F.linear(x, last) + F.linear(inputs, last_recent)).split(MOTION_SIZE, dim=-1)
    # As a Kalman filter: in free space motion is known better than it is seen, where something was hit it is not.
    return gate.sigmoid() * innovation, motion


def origin_pose(shape: Sequence[int], device: torch.device) -> Tensor:
    """The pose that others are seen from, ``[*shape, 4]``; made on the device, so that a CUDA graph may hold it."""
    pose = torch.zeros(*shape, POSE_SIZE, device=device)
    pose[..., 2] = 1
    return pose


def follow_motions(pose: Pose, recent: Tensor, changes: Motions, motions: Motions) -> Poses:
    """Poses of the frames that follow T frames, from what `odometry_motions` says of these.

    Args:
        pose: of the first of the T frames, to which the first of the motions in ``recent`` ``[B, 6]`` led, ``[B, 4]``.
        changes, motions: ``[B, T, 3]``.

    Returns:
        ``[B, T, 4]``.
    """
    led = torch.cat([recent[:, None, :MOTION_SIZE], motions[:, :-1]], dim=1)
    origin = origin_pose(led.shape[:2], pose.device)
    corrections = motion_between(moved(origin, led), moved(origin, led + changes))
    poses = []
    for correction, motion in zip(corrections.unbind(1), motions.unbind(1), strict=True):
        pose = moved(moved(pose, correction), motion)
        poses.append(pose)
    return torch.stack(poses, dim=1)
