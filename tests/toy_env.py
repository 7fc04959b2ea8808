"""A synthetic Gymnasium environment for tests: a square that walks on a small board, rewarded at the target corner.

`gym.make("tests.toy_env:tests/ToyMaze-v0", size=16)` imports this module, registers the environment and makes it. It
has the interface of the real Memory Maze (uint8 frames, a discrete action space, pose and layout in `info`), costs
microseconds a step, and is a pure function of the seed and the actions.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

ENV_ID = "tests/ToyMaze-v0"
NUM_CELLS = 4
MAX_EPISODE_STEPS = 40
FORWARD, TURN_LEFT, TURN_RIGHT = 0, 1, 2

_CORNERS = np.array([(0, 0), (0, NUM_CELLS - 1), (NUM_CELLS - 1, NUM_CELLS - 1), (NUM_CELLS - 1, 0)])
_HEADINGS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])


class ToyMazeEnv(gym.Env[np.ndarray, np.int64]):
    """A board of 4x4 cells drawn into `size` x `size` pixels; the square is white, the target corner red.

    Actions: 0 one cell forward (or against the edge: stay), 1 turn left, 2 turn right. Reaching the target corner
    gives reward 1 and moves the target to the next corner. Never terminates unless `terminate_after_rewards` rewards
    were collected; truncation is the `TimeLimit` of registration (40 steps, `max_episode_steps=` changes it).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 6}  # noqa: RUF012 (gym.Env declares an instance variable)

    def __init__(
        self, size: int = 16, terminate_after_rewards: int | None = None, render_mode: str | None = None
    ) -> None:
        if size % NUM_CELLS != 0 or size <= 0:
            raise ValueError(f"size must be a positive multiple of {NUM_CELLS}, got {size}.")
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self.render_mode = render_mode
        self._size = size
        self._terminate_after_rewards = terminate_after_rewards
        self._background = np.zeros(3, np.uint8)
        self._cell = np.zeros(2, np.int64)
        self._heading = 0
        self._target = 0
        self._num_rewards = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._background = self.np_random.integers(0, 100, 3).astype(np.uint8)
        self._cell = self.np_random.integers(1, NUM_CELLS - 1, 2)
        self._heading = int(self.np_random.integers(4))
        self._target = int(self.np_random.integers(4))
        self._num_rewards = 0
        return self._observation(), self._info()

    def step(self, action: np.int64):
        if not self.action_space.contains(np.int64(action)):
            raise ValueError(f"action must be in {self.action_space}, got {action!r}.")
        if action == FORWARD:
            self._cell = np.clip(self._cell + _HEADINGS[self._heading], 0, NUM_CELLS - 1)
        else:
            self._heading = (self._heading + (1 if action == TURN_RIGHT else -1)) % 4
        reward = 0.0
        if np.array_equal(self._cell, _CORNERS[self._target]):
            reward = 1.0
            self._num_rewards += 1
            self._target = (self._target + 1) % 4
        return self._observation(), reward, self._num_rewards == self._terminate_after_rewards, False, self._info()

    def render(self) -> np.ndarray | None:
        return self._observation() if self.render_mode == "rgb_array" else None

    def _observation(self) -> np.ndarray:
        pixels = self._size // NUM_CELLS
        frame = np.empty((self._size, self._size, 3), np.uint8)
        frame[:] = self._background
        self._fill(frame, _CORNERS[self._target], pixels, (255, 0, 0))
        self._fill(frame, self._cell, pixels, (255, 255, 255))
        nose = self._cell * pixels + pixels // 2 + _HEADINGS[self._heading] * (pixels // 4)
        frame[nose[1], nose[0]] = (0, 0, 255)
        return frame

    @staticmethod
    def _fill(frame: np.ndarray, cell: np.ndarray, pixels: int, color: tuple[int, int, int]) -> None:
        x, y = cell * pixels
        frame[y : y + pixels, x : x + pixels] = color

    def _info(self) -> dict[str, Any]:
        return {
            "pose": np.concatenate([self._cell, _HEADINGS[self._heading]]).astype(np.float32),
            "layout": np.zeros((NUM_CELLS, NUM_CELLS), np.uint8),
            "targets": _CORNERS.astype(np.float32),
            "target_index": self._target,
        }


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "tests.toy_env:ToyMazeEnv", max_episode_steps=MAX_EPISODE_STEPS)
