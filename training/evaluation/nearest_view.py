"""Which frame of the context shows what a later frame shows, by where and in which direction it was taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Places:
    """For F frames after the context, in M mazes."""

    nearest: np.ndarray  # int64 [M, F]: the context frame with the nearest pose
    seen: np.ndarray  # bool [M, F]: whether that frame is near enough to show the same
    frames_back: np.ndarray  # int64 [M, F]: how many frames before this one it was


def locate(pose: np.ndarray, num_context: int, max_distance: float, max_angle: float) -> Places:
    """Finds the context frame with the nearest pose for every later frame.

    A frame has been seen if some context frame lies within `max_distance` and `max_angle` of it. Of those (or of all,
    if there is none) the nearest is the one with the smallest (distance / max_distance)^2 + (angle / max_angle)^2, and
    of equal ones the newest.

    Args:
        pose: [M, T, 4]: x, y in cells, and the heading as a unit vector.
        num_context: the first frames; T must be larger.
        max_distance: cells.
        max_angle: degrees.

    Raises:
        ValueError: poses of another size.
    """
    if pose.shape[-1] != 4:
        raise ValueError(
            f"Recall is measured by pose: (x, y, heading_x, heading_y) in info['pose'], got {pose.shape[-1]} numbers."
        )
    rows = [_locate_one(one.astype(np.float64), num_context, max_distance, max_angle) for one in pose]
    nearest, seen = (np.stack(arrays) for arrays in zip(*rows, strict=True))
    return Places(nearest, seen, np.arange(num_context, pose.shape[1]) - nearest)


def _locate_one(
    pose: np.ndarray, num_context: int, max_distance: float, max_angle: float
) -> tuple[np.ndarray, np.ndarray]:
    # From the newest frame to the oldest, so that the first minimum is the newest.
    context, later = pose[num_context - 1 :: -1], pose[num_context:]
    distance = np.hypot(*(later[:, None, axis] - context[None, :, axis] for axis in (0, 1)))
    headings = [np.arctan2(part[:, 3], part[:, 2]) for part in (later, context)]
    difference = headings[0][:, None] - headings[1][None]
    angle = np.abs(np.degrees(np.arctan2(np.sin(difference), np.cos(difference))))
    # Poses are float32 numbers: the same place is the same up to rounding.
    is_near = np.logical_and(distance <= max_distance + 1e-6, angle <= max_angle + 1e-4)
    seen = np.any(is_near, axis=1)
    score = (distance / max_distance) ** 2 + (angle / max_angle) ** 2
    score = np.where(is_near | ~seen[:, None], score, np.inf)
    return num_context - 1 - score.argmin(1), seen
