"""A world of which a memory is all that there is to learn: a ring of random pictures, of which one is in view.

``gym.make("training.benchmarks.trials.world:RingWorld-v0")`` imports this module, registers the environment and makes
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

ENV_ID = "RingWorld-v0"
NUM_PICTURES = 8
COLOR_PIXELS = 8
MAX_EPISODE_STEPS = 127
TURN_LEFT, TURN_RIGHT = 0, 1
KEEP_TURNING = 0.9  # probability of `wander` to go on in its direction
LAMP = np.uint8(255)


class RingWorld(gym.Env[np.ndarray, np.int64]):
    """Stands in the middle of a ring of 8 pictures, of 2x2 colours each, which are drawn anew in each episode.

    The 16x16 frame shows one picture, and every action turns to a neighbouring one. One of them is the lamp, whose
    upper left colour is white; it gives reward 1 when it comes into view. So a picture that is shown for the first time
    cannot be told, and all others can, with their rewards, by a memory of 32 colours.

    ``info["pose"]`` is (0, 0, cos heading, sin heading). Never terminates; truncated after 127 steps, by registration.
    """

    def __init__(self) -> None:
        size = 2 * COLOR_PIXELS
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(2)
        self._pictures = np.zeros((NUM_PICTURES, 2, 2, 3), np.uint8)
        self._lamp = 0
        self._heading = 0  # index of the picture in view; counts counter-clockwise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins at a place that the seed draws; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._pictures = self.np_random.integers(0, 256, self._pictures.shape, np.uint8)
        self._lamp, self._heading = self.np_random.integers(NUM_PICTURES, size=2).tolist()
        self._pictures[self._lamp, 0, 0] = LAMP
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Turns to one side; see `gymnasium.Env.step`."""
        if not self.action_space.contains(np.int64(action)):
            raise ValueError(f"action must be in {self.action_space}, got {action!r}.")
        self._heading = (self._heading + (1 if action == TURN_LEFT else -1)) % NUM_PICTURES
        return self._observation(), float(self._heading == self._lamp), False, False, self._info()

    def _observation(self) -> np.ndarray:
        return self._pictures[self._heading].repeat(COLOR_PIXELS, axis=0).repeat(COLOR_PIXELS, axis=1)

    def _info(self) -> dict[str, Any]:
        angle = math.tau * self._heading / NUM_PICTURES
        return {"pose": np.array([0.0, 0.0, math.cos(angle), math.sin(angle)], np.float32)}


def wander(env: gym.Env[Any, Any], seed: int) -> Callable[[Any, dict[str, Any]], np.int64]:
    """A recording policy that turns, mostly in the direction in which it turned before; see
    `training.recording.policies`."""
    rng = np.random.default_rng(seed)
    action = int(rng.integers(2))

    def act(obs: Any, info: dict[str, Any]) -> np.int64:
        nonlocal action
        if rng.random() >= KEEP_TURNING:
            action = 1 - action
        return np.int64(action)

    return act


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "training.benchmarks.trials.world:RingWorld", max_episode_steps=MAX_EPISODE_STEPS)
