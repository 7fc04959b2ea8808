"""A policy acts in a batch of dreams, each from the end of its own real context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from agents.environments.settings import EnvSpec
from agents.policies.loading import PolicyMaker
from wm_gym.contexts import Context
from wm_gym.policies.base import policy_seed


@dataclass(frozen=True)
class Episode:
    """What S actions led to, in a dream or in reality."""

    frames: np.ndarray  # uint8 [S, H, W, C]
    rewards: np.ndarray  # float64 [S]
    end: str  # "terminated" or "truncated" at step S, else ""


@dataclass(frozen=True)
class Dreamed:
    """An episode that a policy played in a dream."""

    actions: np.ndarray  # [S] or [S, A]; actions[0] was taken at the last frame of the context
    episode: Episode
    likely: np.ndarray  # [S, 2]: the likeliest reward other than 0, and how probable the head takes any to be
    poses: np.ndarray | None = None  # [S + 1, 4] from the end of the context on, as the dream tells them, if it does


class EpisodeLog:
    """An episode as it grows."""

    def __init__(self) -> None:
        self.actions: list[Any] = []
        self.frames: list[np.ndarray] = []
        self.poses: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._likely: list[Any] = []
        self.end = ""

    def add(
        self, frame: Any, reward: Any, terminated: Any, truncated: Any, action: Any = None, likely: Any = None
    ) -> None:
        """Adds a step, and the action that is taken next."""
        self.actions.append(action)
        self._likely.append(likely)
        self.frames.append(np.array(frame))
        self._rewards.append(float(reward))
        self.end = "terminated" if terminated else "truncated" if truncated else ""

    def episode(self) -> Episode:
        """The episode so far."""
        return Episode(np.stack(self.frames), np.array(self._rewards), self.end)

    def dreamed(self, action_space: gym.Space[Any]) -> Dreamed:
        """The episode so far, with the actions and poses of its dream."""
        actions = np.array(self.actions, action_space.dtype)
        poses = np.stack(self.poses) if self.poses else None
        return Dreamed(actions, self.episode(), np.array(self._likely, np.float64), poses)


class DreamRows:
    """A batch of dreams in which policies act, each in its row, as in an environment of their own.

    Args:
        spec: the dream; with a memory, policies see it as `wm_gym.wrappers.memory.MemoryObservation` would show it.
        num_rows: N.
        horizon: steps of an episode.
        device: where they are dreamed.

    Raises what `gym.make_vec` raises.
    """

    def __init__(self, spec: EnvSpec, num_rows: int, horizon: int, device: str) -> None:
        arguments = {"device": device, **spec.kwargs, "horizon": horizon, "autoreset_mode": AutoresetMode.DISABLED}
        self.envs: Any = gym.make_vec(spec.env, num_rows, vectorization_mode="vector_entry_point", **arguments)
        self.image_spaces = self.envs.single_observation_space, self.envs.single_action_space
        self.observation_space, self.action_space = self.image_spaces
        # A refresh makes memory anew, and poses are seen from another frame from then on.
        self._tells_poses = self.envs.unwrapped.poses is not None and not spec.kwargs.get("refresh_steps")
        self._feature = None
        if spec.memory is not None:
            dream: Any = self.envs.unwrapped
            self._feature = spec.memory.remembered(dream.model)
            self.observation_space = self._feature.with_image(self.observation_space)

    def play(self, make: PolicyMaker, seeds: Sequence[int], contexts: Sequence[Context]) -> list[Dreamed]:
        """Acts until every episode has ended, by itself or at the horizon.

        Args:
            make: of policies, which see no info; each is called with a stand-in that has the dream's spaces.
            seeds: at most N; a seed decides noise and policy of its episode.
            contexts: where the dreams start, all of one length.
        """
        policies = [make(self, policy_seed(seed)) for seed in seeds]
        for policy in policies:
            policy.reset({})
        missing = self.envs.num_envs - len(seeds)  # rows that nobody asked for dream along
        stacked = _stacked([*contexts, *[contexts[-1]] * missing])
        obs, _ = self.envs.reset(seed=[*seeds, *[seeds[-1]] * missing], options={"context": stacked})
        logs = [EpisodeLog() for _ in seeds]
        self._note_poses(logs)
        actions: list[Any] = [self.action_space.sample()] * self.envs.num_envs
        ended = np.zeros(self.envs.num_envs, np.bool_)
        while any(not log.end for log in logs):
            if ended.any():  # they go on from their context, unseen: the batch steps as a whole
                self.envs.reset(options={"context": stacked, "reset_mask": ended})
            seen = self._observations(obs)
            for row, log in enumerate(logs):
                if not log.end:
                    actions[row] = policies[row](seen(row), {})
            obs, rewards, terminated, truncated, _ = self.envs.step(np.stack(actions))
            ended = np.asarray(terminated | truncated)
            likely = torch.stack(self.envs.unwrapped.likely_rewards, -1).cpu().numpy()
            self._note_poses(logs)
            for row, log in enumerate(logs):
                if not log.end:
                    log.add(obs[row], rewards[row], terminated[row], truncated[row], actions[row], likely[row])
        return [log.dreamed(self.action_space) for log in logs]

    def close(self) -> None:
        """Frees the dreams."""
        self.envs.close()

    def _note_poses(self, logs: Sequence[EpisodeLog]) -> None:
        if self._tells_poses:
            poses = self.envs.unwrapped.poses
            for row, log in enumerate(logs):
                if not log.end:
                    log.poses.append(poses[row])

    def _observations(self, frames: np.ndarray) -> Callable[[int], Any]:
        if self._feature is None:
            return lambda row: frames[row]
        dream: Any = self.envs.unwrapped
        memory = self._feature(dream.memory).cpu().numpy()
        return lambda row: {"image": frames[row], "memory": memory[row]}


def _stacked(contexts: Sequence[Context]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([one.frames for one in contexts]), np.stack([one.actions for one in contexts])
