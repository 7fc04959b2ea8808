"""One environment as a player sees it: its episode so far, ways back to its moments, and its recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

Recorder = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]
REPLAYED_STEPS = 25  # between two signs of life


@dataclass(frozen=True)
class Memento:
    """A moment of a world: its state where the environment has one, and what leads to it in any case."""

    seed: int
    context: tuple[np.ndarray, np.ndarray] | None
    actions: tuple[Any, ...]
    obs: np.ndarray
    info: dict[str, Any]
    total: float
    ended: str | None
    state: Any  # of get_state, or None: then the actions are taken again


class World:
    """An environment with image observations, its running episode and how to come back to its moments.

    Args:
        env: from gym.make; its observations are uint8 [H, W, 1 or 3].
        label: what the player calls it, such as "dream".
        lock: held while the environment works: worlds that share a device which cannot be used side by side share one.

    Raises:
        ValueError: an observation that is no image.
    """

    def __init__(self, env: gym.Env[Any, Any], label: str, lock: AbstractContextManager[Any] | None = None) -> None:
        check_image(env.observation_space, label)
        self.label = label
        self._env = env
        self._lock = lock or nullcontext()
        self._recorder: gym.Env[Any, Any] | None = None
        self.can_save = callable(getattr(env.unwrapped, "get_state", None))
        self.seed = -1
        self.obs = np.zeros(env.observation_space.shape or (), np.uint8)
        self.info: dict[str, Any] = {}
        self.total = 0.0  # rewards of the episode so far
        self.reward = 0.0  # the last one
        self.actions: list[Any] = []
        self.ended: str | None = "not started"  # why no step can be taken; None while one can
        self.step_seconds = 0.0  # what the last reset or step of the environment took
        self._context: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def action_space(self) -> gym.Space[Any]:
        """The actions that the world takes."""
        return self._env.action_space

    def reset(self, seed: int, context: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Starts an episode, a dream from `context` if one is given. Raises what the environment raises."""
        self.ended = "not started"
        options = None if context is None else {"context": context}
        start = time.perf_counter()
        with self._lock:
            self.obs, self.info = (self._recorder or self._env).reset(seed=seed, options=options)
        self.step_seconds = time.perf_counter() - start
        self.seed, self._context = seed, context
        self.actions, self.total, self.reward, self.ended = [], 0.0, 0.0, None

    def step(self, action: Any) -> None:
        """Takes an action. Raises what the environment raises, and ValueError after the end of the episode."""
        if self.ended is not None:
            raise ValueError(f"The episode has ended ({self.ended}): start another one.")
        start = time.perf_counter()
        with self._lock:
            self.obs, reward, terminated, truncated, self.info = (self._recorder or self._env).step(action)
        self.step_seconds = time.perf_counter() - start
        self.reward = float(reward)
        self.total += self.reward
        self.actions.append(action)
        if terminated or truncated:
            self.ended = "terminated" if terminated else "time limit"

    def save(self) -> Memento:
        """This moment. The environment's own state costs its memory; without one, going back costs time."""
        state = None
        if self.can_save:
            with self._lock:
                state = self._env.unwrapped.get_state()  # pyright: ignore[reportAttributeAccessIssue]
        return Memento(
            self.seed, self._context, tuple(self.actions), self.obs.copy(), self.info, self.total, self.ended, state
        )

    def restore(self, moment: Memento) -> Iterator[None]:
        """Goes back to a moment of `save`: at once, or by taking its actions again, with pauses for whoever waits.

        Raises ValueError if the environment does not come to the same frame again.
        """
        if moment.state is not None:
            with self._lock:
                self._env.unwrapped.set_state(moment.state)  # pyright: ignore[reportAttributeAccessIssue]
            self.obs = moment.obs
        else:
            self.reset(moment.seed, moment.context)
            yield
            for index, action in enumerate(moment.actions, start=1):
                self.step(action)
                if index % REPLAYED_STEPS == 0:
                    yield
            if not np.array_equal(self.obs, moment.obs):
                self.ended = "it cannot go back"
                raise ValueError(f"The {self.label} gives other frames for the same seed and actions: no way back.")
        self.seed, self._context, self.actions = moment.seed, moment.context, list(moment.actions)
        self.info, self.total, self.ended, self.reward = moment.info, moment.total, moment.ended, 0.0

    def start_recording(self, recorder: Recorder) -> None:
        """Episodes from the next reset on are recorded. Raises what the recorder raises."""
        self.stop_recording()
        self._recorder = recorder(_KeepOpen(self._env))

    def stop_recording(self) -> None:
        """Hands in what was recorded; the episode goes on."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()

    def close(self) -> None:
        """Ends the recording and the environment."""
        try:
            self.stop_recording()
        finally:
            self._env.close()


class _KeepOpen(gym.Wrapper[Any, Any, Any, Any]):
    """Lets a recorder be closed while its environment goes on."""

    def close(self) -> None:
        """Nothing: the world closes the environment."""


def check_image(space: gym.Space[Any], label: str) -> None:
    """Raises ValueError unless observations are images that a page can draw."""
    shape = space.shape or ()
    if not (isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3)):
        raise ValueError(f"The page draws uint8 images [H, W, 3] or [H, W, 1]; the {label} observes {space}.")
