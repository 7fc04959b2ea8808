"""Recorded episodes as one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from wm_gym.comparison.sides import Outcome, Spaces
from wm_gym.contexts import Context

RECORDED_ACTION = "recorded_action"  # the entry of info that holds the next action of a recording


@dataclass(frozen=True)
class RecordedEpisode:
    """A whole episode that was recorded: frames[t] --actions[t], rewards[t]--> frames[t + 1]."""

    frames: np.ndarray  # uint8 [T + 1, H, W, C]
    actions: np.ndarray  # [T] or [T, A]
    rewards: np.ndarray  # float [T]
    infos: Sequence[dict[str, Any]]  # T + 1; what the environment told that is known, such as pose and layout
    end: str  # "terminated" or "truncated"


class Episodes(Protocol):
    """Recorded episodes that stand in for an environment; `training.compare` makes them of a store."""

    name: str  # of the recording
    env_id: str  # of the environment that was recorded
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    @property
    def seeds(self) -> Sequence[int]:
        """Of all episodes that there are."""
        ...

    def read(self, seed: int) -> RecordedEpisode:
        """The episode of a seed. Raises FileNotFoundError if there is none."""
        ...


class RecordedSide:
    """Plays recorded episodes back. `info["recorded_action"]` is the action to take, and any other is ignored."""

    takes_context = False

    def __init__(self, episodes: Episodes, num_rows: int) -> None:
        self.name = episodes.name
        self.num_rows = num_rows
        self.env = Spaces(episodes.observation_space, episodes.action_space)
        self._episodes = episodes

    def start(self, seeds: Sequence[int], contexts: Sequence[Context] | None) -> list[Outcome]:
        """See `Side`."""
        self._playing = [self._episodes.read(seed) for seed in seeds]
        self._time = 0
        return [self._outcome(episode) for episode in self._playing]

    def step(self, actions: Sequence[Any], active: Sequence[bool]) -> list[Outcome | None]:
        """See `Side`."""
        self._time += 1
        rows = zip(self._playing, active, strict=True)
        return [self._outcome(episode) if is_active else None for episode, is_active in rows]

    def close(self) -> None:
        """Nothing is held."""

    def _outcome(self, episode: RecordedEpisode) -> Outcome:
        time, length = self._time, len(episode.actions)
        info = {**episode.infos[time], RECORDED_ACTION: episode.actions[time] if time < length else None}
        reward = 0.0 if time == 0 else float(episode.rewards[time - 1])
        return Outcome(episode.frames[time], reward, episode.end if time == length else "", info)


class ReplayPolicy:
    """Takes the actions that were recorded."""

    def reset(self, info: dict[str, Any]) -> None:
        """Nothing to do: the recording says all."""

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        return info[RECORDED_ACTION]
