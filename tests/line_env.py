"""A world that a tiny model learns in seconds: a square on a line of four cells, rewarded while it is at the right.

`gym.make("tests.line_env:tests/Line-v0")`. Frames of 16x16, actions 0 left, 1 stay, 2 right, 24 steps. Random play is
at the right in a fourth of the steps; who walks there and stays, in nearly all.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

ENV_ID = "tests/Line-v0"
NUM_CELLS, PIXELS = 4, 4


class LineEnv(gym.Env[np.ndarray, np.int64]):
    """The seed draws the starting cell and the colour of the background."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self._cell = 0
        self._background = np.zeros(3, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._cell = int(self.np_random.integers(NUM_CELLS))
        self._background = self.np_random.integers(0, 100, 3).astype(np.uint8)
        return self._observation(), {}

    def step(self, action: np.int64):
        self._cell = int(np.clip(self._cell + int(action) - 1, 0, NUM_CELLS - 1))
        return self._observation(), float(self._cell == NUM_CELLS - 1), False, False, {}

    def _observation(self) -> np.ndarray:
        frame = np.empty((16, 16, 3), np.uint8)
        frame[:] = self._background
        frame[6:10, self._cell * PIXELS : (self._cell + 1) * PIXELS] = 255
        return frame


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "tests.line_env:LineEnv", max_episode_steps=24)
