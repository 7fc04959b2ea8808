"""Planar poses: (x, y, cos heading, sin heading), headings counter-clockwise, in cells or any other unit of length.

A motion is what leads from one pose to the next, seen from the first: (forward, left, turn), the turn in radians.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wm_gym.array_typing import Poses

POSE_SIZE = 4
MOTION_SIZE = 3
DRIFT_STEPS = (0, 1, 10, 20, 50, 100, 200, 400, 800, 1600, 3200)  # of a dream; 0: before the first


def relative_to_first(poses: Poses) -> Poses:
    """Poses ``[..., T, 4]`` as seen from the first of the T frames, which gets (0, 0, 1, 0)."""
    return relative_to(poses, poses[..., :1, :])


def relative_to(poses: Tensor, origin: Tensor) -> Tensor:
    """Poses ``[..., 4]`` as seen from ``origin``, which is broadcast against them."""
    offset = _rotated(poses[..., :2] - origin[..., :2], origin[..., 2], -origin[..., 3])
    heading = _rotated(poses[..., 2:], origin[..., 2], -origin[..., 3])
    return torch.cat([offset, heading], dim=-1)


def placed(origin: Tensor, poses: Tensor) -> Tensor:
    """Inverse of `relative_to`: poses ``[..., 4]`` seen from ``origin`` ``[..., 4]``, as seen from where that is."""
    return moved(origin, torch.cat([poses[..., :2], torch.atan2(poses[..., 3:], poses[..., 2:3])], dim=-1))


def motion_between(pose: Tensor, later: Tensor) -> Tensor:
    """The motion ``[..., 3]`` from one pose ``[..., 4]`` to a later one."""
    relative = relative_to(later, pose)
    return torch.cat([relative[..., :2], torch.atan2(relative[..., 3:], relative[..., 2:3])], dim=-1)


def moved(pose: Tensor, motion: Tensor) -> Tensor:
    """The pose ``[..., 4]`` after a motion ``[..., 3]``; its heading keeps unit length."""
    position = pose[..., :2] + _rotated(motion[..., :2], pose[..., 2], pose[..., 3])
    heading = _rotated(pose[..., 2:], motion[..., 2].cos(), motion[..., 2].sin())
    heading = heading / heading.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    return torch.cat([position, heading], dim=-1)


def motion_sizes(motions: Tensor) -> Tensor:
    """Lengths, in units of the poses, and angles in degrees of motions ``[..., 3]``, beside each other ``[..., 2]``."""
    return torch.stack([motions[..., :2].norm(dim=-1), motions[..., 2].abs().rad2deg()], dim=-1)


def size_quantiles(sizes: Tensor) -> dict[str, dict[str, float]]:
    """{"cells": {"median": 0.1, "p90": …, "p99": …}, "degrees": …} of sizes ``[n, 2]``, n at least 1."""
    found = {}
    for i, name in enumerate(("cells", "degrees")):
        values = torch.quantile(sizes[:, i].double(), torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64))
        found[name] = {
            key: round(value, 4) for key, value in zip(("median", "p90", "p99"), values.tolist(), strict=True)
        }
    return found


def drift_steps(num_steps: int) -> list[int]:
    """The steps of a dream of `num_steps` after which its drift is told."""
    return [step for step in DRIFT_STEPS if step <= num_steps]


def _rotated(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x, y = vectors.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
