"""Real rollouts of equal length, read from a store or recorded on the spot, to measure a model against."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.recording.episode import make_env, policy_seed, record_episode
from training.recording.policies import make_policy
from training.store.episode import Episode
from training.store.episode_store import open_store
from wm_gym.seeds import FIRST_EVALUATION_SEED


@dataclass(frozen=True)
class Rollouts:
    """The first T frames of M episodes; actions[:, t] leads from frames[:, t] to frames[:, t + 1]."""

    env_id: str
    policy: str
    seeds: tuple[int, ...]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    frames: Tensor  # uint8 [M, T, H, W, C]
    actions: Tensor  # int64 [M, T-1] or float32 [M, T-1, A]
    rewards: Tensor  # float32 [M, T-1]
    pose: Tensor  # float32 [M, T, P]; P = 0 if the environment tells none


def read_rollouts(path: Path, split: str, seeds: Sequence[int] | None, num_frames: int) -> Rollouts:
    """From a store; all episodes of the split if `seeds` is None.

    Raises:
        FileNotFoundError: no such store or seed.
        ValueError: an episode is shorter than `num_frames`, or the split is empty.
    """
    store = open_store(path)
    chosen = store.seeds(split) if seeds is None else list(seeds)
    if not chosen:
        raise ValueError(f"{path} has no episodes in split {split!r}.")
    header = store.header
    episodes = (store.read(seed, split) for seed in tqdm(chosen, desc="reading", unit="episode"))
    return _stack(episodes, num_frames, header.env_id, header.policy, header.observation_space, header.action_space)


def record_rollouts(env_id: str, policy: str, seeds: Sequence[int], num_frames: int) -> Rollouts:
    """The first `num_frames` frames of the episodes that `training.collect` would record for `seeds`.

    Raises:
        ValueError: there is no such environment, the policy does not fit it, or an episode ends earlier.
        ImportError: a package is missing that the environment needs.
    """
    env = make_env(env_id, max_episode_steps=num_frames - 1)
    try:
        episodes = (
            record_episode(env, make_policy(policy, env, policy_seed(seed)), seed)
            for seed in tqdm(seeds, desc="recording", unit="episode")
        )
        return _stack(episodes, num_frames, env_id, policy, env.observation_space, env.action_space)
    finally:
        env.close()


def check_held_out(seeds: Sequence[int], training_seeds: Sequence[Sequence[int]]) -> None:
    """Raises ValueError if one of `seeds` is in `training_seeds` (inclusive ranges), or is below 7,000,000."""
    trained = [seed for seed in seeds if any(first <= seed <= last for first, last in training_seeds)]
    if trained:
        raise ValueError(f"The checkpoint was trained on seed {trained[0]}; evaluate on seeds it has not seen.")
    if early := [seed for seed in seeds if seed < FIRST_EVALUATION_SEED]:
        raise ValueError(f"Seed {early[0]} is for training; evaluation takes seeds from {FIRST_EVALUATION_SEED:,} on.")


def _stack(
    episodes: Iterable[Episode],
    num_frames: int,
    env_id: str,
    policy: str,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
) -> Rollouts:
    seeds, rows = [], []
    for episode in episodes:
        if episode.num_frames < num_frames:
            raise ValueError(
                f"The episode of seed {episode.seed} has {episode.num_frames} frames; {num_frames} are needed."
            )
        seeds.append(episode.seed)
        steps = slice(0, num_frames - 1)
        arrays = (
            episode.frames[:num_frames],
            episode.actions[steps],
            episode.rewards[steps],
            episode.pose[:num_frames],
        )
        rows.append([np.array(array) for array in arrays])  # copies, so that the rest of the episode is let go
    tensors = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True)]
    return Rollouts(env_id, policy, tuple(seeds), observation_space, action_space, *tensors)


def first_frames(walks: Rollouts, num_frames: int) -> Rollouts:
    """The beginnings of walks."""
    steps = num_frames - 1
    return dataclasses.replace(
        walks,
        frames=walks.frames[:, :num_frames],
        pose=walks.pose[:, :num_frames],
        actions=walks.actions[:, :steps],
        rewards=walks.rewards[:, :steps],
    )
