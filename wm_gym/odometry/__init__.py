"""Odometry: predicts the pose that the next frame will be seen from.

`protocol` says what goes in and comes out; `visual` looks at frames, `by_map` reads the map in dreams, `grid` and
`bearings` are a prior that holds in Memory Maze, and `tracker` follows the frames that enter a memory.
"""

from __future__ import annotations

from wm_gym.nn.config import WorldModelConfig
from wm_gym.odometry.protocol import Odometry
from wm_gym.odometry.visual import VisualOdometry, odometry_state_size

__all__ = ["Odometry", "make_odometry", "odometry_state_size"]


def make_odometry(config: WorldModelConfig) -> Odometry | None:
    """The untrained odometry of a model; None of one that predicts no poses."""
    return VisualOdometry(config) if config.has_odometry else None
