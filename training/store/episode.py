"""One recorded episode, what all episodes of a store have in common, and the rules that both obey."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from wm_gym.seeds import FIRST_EVALUATION_SEED, MAX_SEED

SPLITS = ("train", "test", "eval")


@dataclass(frozen=True)
class StoreHeader:
    """What all episodes of a store have in common. `env_id` is what `gym.make` takes, "module:Id" included.

    Raises ValueError for spaces other than the ones below.
    """

    env_id: str
    observation_space: gym.Space[Any]  # Box uint8 [H, W, C]
    action_space: gym.Space[Any]  # Discrete, or Box float32 [A]
    policy: str
    max_episode_steps: int | None = None  # None: the environment's own limit
    recording: dict[str, Any] = field(default_factory=dict)  # how frames were made: `RecordingOptions.to_json`
    packages: dict[str, str] = field(default_factory=dict, compare=False)  # name -> version

    def __post_init__(self) -> None:
        space = self.observation_space
        if not (isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3):
            raise ValueError(f"A store needs observations that are a uint8 Box [H, W, C], got {space}.")
        space = self.action_space
        continuous = isinstance(space, gym.spaces.Box) and space.dtype == np.float32 and len(space.shape) == 1
        if not (isinstance(space, gym.spaces.Discrete) or continuous):
            raise ValueError(f"A store needs actions that are Discrete or a float32 Box [A], got {space}.")

    def is_of(self, env_id: str) -> bool:
        """Whether `env_id` is the same environment; "module:Id" and "Id" are."""
        return self.env_id.rpartition(":")[2] == env_id.rpartition(":")[2]

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(H, W, C)"""
        return tuple(self.observation_space.shape or ())

    @property
    def action_shape(self) -> tuple[int, ...]:
        """() if discrete, else (A,)"""
        return tuple(self.action_space.shape or ())

    @property
    def action_dtype(self) -> np.dtype:
        """The dtype of stored actions: int64 or float32."""
        return np.dtype(np.int64 if isinstance(self.action_space, gym.spaces.Discrete) else np.float32)


@dataclass(frozen=True)
class Episode:
    """One whole episode of T transitions and T+1 frames: frames[t] --actions[t], rewards[t], ...--> frames[t+1]."""

    seed: int  # of the environment's reset
    frames: np.ndarray  # uint8 [T+1, H, W, C]
    actions: np.ndarray  # int64 [T] or float32 [T, A]
    rewards: np.ndarray  # float32 [T]
    terminations: np.ndarray  # bool [T]
    truncations: np.ndarray  # bool [T]
    pose: np.ndarray  # float32 [T+1, P]; P = 0 if the environment tells none
    attributes: dict[str, Any] = field(default_factory=dict)  # JSON types: layout, targets, policy, policy_seed ...

    @property
    def num_frames(self) -> int:
        """Frames of the episode, one more than its actions."""
        return len(self.frames)


def check_seed(seed: int, split: str) -> None:
    """Raises ValueError if mazes of `seed` are not for `split`: from 7,000,000 on they are for evaluation only."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"A seed is an integer from 0 to 2**32 - 1, got {seed}.")
    if split == "train" and seed >= FIRST_EVALUATION_SEED:
        raise ValueError(
            f"Seeds from {FIRST_EVALUATION_SEED:,} on are for evaluation only, got {seed:,} for split 'train'."
        )
    if split != "train" and seed < FIRST_EVALUATION_SEED:
        raise ValueError(
            f"Split {split!r} takes seeds from {FIRST_EVALUATION_SEED:,} on, which are never trained on, got {seed:,}."
        )


def check_episode(episode: Episode, header: StoreHeader) -> None:
    """Raises ValueError if an episode's arrays do not fit the header or each other."""
    steps = episode.num_frames - 1
    if steps < 1:
        raise ValueError(f"An episode needs at least two frames, got {episode.num_frames}.")
    expected = {
        "frames": ((steps + 1, *header.frame_shape), np.dtype(np.uint8)),
        "actions": ((steps, *header.action_shape), header.action_dtype),
        "rewards": ((steps,), np.dtype(np.float32)),
        "terminations": ((steps,), np.dtype(np.bool_)),
        "truncations": ((steps,), np.dtype(np.bool_)),
        "pose": ((steps + 1, *episode.pose.shape[1:2]), np.dtype(np.float32)),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(episode, name)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}.")
    space = header.action_space
    if isinstance(space, gym.spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n - 1)
        if episode.actions.min() < low or episode.actions.max() > high:
            raise ValueError(
                f"actions must be from {low} to {high}, got {episode.actions.min()} to {episode.actions.max()}."
            )
