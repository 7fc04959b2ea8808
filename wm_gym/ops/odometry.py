"""The recursion of odometry: motion after motion, and the poses that they lead to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.array_typing import Motions, Pose, Poses
from wm_gym.ops.step import Backend, uses_triton
from wm_gym.poses import MOTION_SIZE, moved


def odometry_scan(
    hidden: Tensor,
    out: Tensor,
    has_previous: Tensor,
    recent: Tensor,
    pose: Pose,
    recur: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    last: Tensor,
    last_recent: Tensor,
    scale: float,
    *,
    backend: Backend = "auto",
) -> tuple[Poses, Tensor]:
    """Poses of the frames that follow T frames. No gradients: those go through `odometry_motions`.

    Args:
        hidden: what frames and actions contribute to the first hidden layer, ``[B, T, width]``.
        out: what actions contribute to the outputs, ``[B, T, 9]``: a correction of the frame's pose, the logits of its
            gate, and the motion to the next frame.
        has_previous: 0 where there is nothing to correct by, else 1, ``[B, T, 1]``.
        recent: the motion to the first frame and the one before it, ``[B, 6]``.
        pose: of the first frame, ``[B, 4]``.
        recur, inner, inner_bias, last, last_recent: weights ``[width, 6]``, ``[width, width]``, ``[width]``,
            ``[9, width]``, ``[9, 6]``.
        scale: by which motions are multiplied within the network.

    Returns:
        Poses ``[B, T, 4]`` and the recent motions at the end ``[B, 6]``.
    """
    weights = (recur, inner, inner_bias, last, last_recent)
    if uses_triton(hidden.device, backend):
        from wm_gym.ops.triton.odometry_scan import odometry_scan as kernel

        return kernel(hidden, out, has_previous, recent, pose, *weights, scale)
    corrections, motions, recent = odometry_motions(hidden, out, has_previous, recent, *weights, scale)
    return follow_motions(pose, corrections, motions), recent


def odometry_motions(
    hidden: Tensor,
    out: Tensor,
    has_previous: Tensor,
    recent: Tensor,
    recur: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    last: Tensor,
    last_recent: Tensor,
    scale: float,
) -> tuple[Motions, Motions, Tensor]:
    """Arguments as of `odometry_scan`.

    Returns:
        For each frame, how far its pose was off, seen from that pose, ``[B, T, 3]``; the motion from where it really
        was to the next frame, ``[B, T, 3]``; and the recent motions at the end, ``[B, 6]``.
    """
    corrections, motions = [], []
    for t in range(hidden.shape[1]):
        inputs = recent * scale
        x = F.silu(F.linear(F.silu(hidden[:, t] + F.linear(inputs, recur)), inner, inner_bias))
        outputs = out[:, t] + F.linear(x, last) + F.linear(inputs, last_recent)
        correction, gate, motion = outputs.split(MOTION_SIZE, dim=-1)
        # Motion in free space is known better than it is seen; where something was hit there is much to put right.
        correction = correction * gate.sigmoid() * has_previous[:, t] / scale
        motion = motion / scale
        # The correction is to the frame's pose, not to the motion to it: the same up to a small rotation.
        recent = torch.cat([motion, recent[:, :MOTION_SIZE] + correction], dim=-1)
        corrections.append(correction)
        motions.append(motion)
    return torch.stack(corrections, dim=1), torch.stack(motions, dim=1), recent


def follow_motions(pose: Pose, corrections: Motions, motions: Motions) -> Poses:
    """The poses ``[B, T, 4]`` that corrections and motions ``[B, T, 3]`` lead to from a pose ``[B, 4]``."""
    poses = []
    for correction, motion in zip(corrections.unbind(1), motions.unbind(1), strict=True):
        pose = moved(moved(pose, correction), motion)
        poses.append(pose)
    return torch.stack(poses, dim=1)
