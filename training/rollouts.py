"""Real rollouts of equal length, read from a store or recorded on the spot, to measure a model against."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.episode import FIRST_EVALUATION_SEED
from training.policies import make_policy
from training.store import open_store


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
    terminations: Tensor  # bool [M, T-1]
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
    rows = []
    for seed in tqdm(chosen, desc="reading", unit="episode"):
        episode = store.read(seed, split)
        _check_length(seed, episode.num_frames, num_frames)
        steps = num_frames - 1
        rows.append(
            (
                episode.frames[:num_frames],
                episode.actions[:steps],
                episode.rewards[:steps],
                episode.terminations[:steps],
                episode.pose[:num_frames],
            )
        )
    header = store.header
    return _stack(rows, header.env_id, header.policy, chosen, header.observation_space, header.action_space)


def record_rollouts(env_id: str, policy_name: str, seeds: Sequence[int], num_frames: int) -> Rollouts:
    """One episode of `gym.make(env_id)` per seed, under a policy seeded likewise.

    Raises:
        ValueError: an episode ends before `num_frames`, or the policy does not fit the environment.
        gymnasium.error.Error: there is no such environment.
    """
    if ":" not in env_id:
        importlib.import_module("wm_gym")  # registers its environments
    env = gym.make(env_id)
    try:
        rows = []
        for seed in tqdm(seeds, desc="recording", unit="episode"):
            rows.append(_record(env, make_policy(policy_name, env, seed), seed, num_frames))
        return _stack(rows, env_id, policy_name, seeds, env.observation_space, env.action_space)
    finally:
        env.close()


def check_held_out(seeds: Sequence[int], training_seeds: Sequence[Sequence[int]]) -> None:
    """Raises ValueError if one of `seeds` is in `training_seeds` (inclusive ranges), or is below 7,000,000."""
    trained = [seed for seed in seeds if any(first <= seed <= last for first, last in training_seeds)]
    if trained:
        raise ValueError(f"The checkpoint was trained on seed {trained[0]}; evaluate on seeds it has not seen.")
    if early := [seed for seed in seeds if seed < FIRST_EVALUATION_SEED]:
        raise ValueError(f"Seed {early[0]} is for training; evaluation takes seeds from {FIRST_EVALUATION_SEED:,} on.")


def _record(env: gym.Env[Any, Any], policy: Any, seed: int, num_frames: int) -> tuple[np.ndarray, ...]:
    discrete = isinstance(env.action_space, gym.spaces.Discrete)
    observation, info = env.reset(seed=seed)
    policy.reset(info)
    frames, poses, steps = [observation], [_pose(info)], []
    while len(frames) < num_frames:
        action = policy(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        frames.append(observation)
        poses.append(_pose(info))
        steps.append((action, reward, terminated))
        if terminated or truncated:
            _check_length(seed, len(frames), num_frames)
    actions, rewards, terminations = zip(*steps, strict=True)
    return (
        np.stack(frames),
        np.asarray(actions, np.int64 if discrete else np.float32),
        np.asarray(rewards, np.float32),
        np.asarray(terminations, np.bool_),
        np.stack(poses),
    )


def _pose(info: dict[str, Any]) -> np.ndarray:
    return np.asarray(info.get("pose", ()), np.float32)


def _check_length(seed: int, num_frames: int, needed: int) -> None:
    if num_frames < needed:
        raise ValueError(f"The episode of seed {seed} has {num_frames} frames; {needed} are needed.")


def _stack(
    rows: Sequence[tuple[np.ndarray, ...]],
    env_id: str,
    policy: str,
    seeds: Sequence[int],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
) -> Rollouts:
    tensors = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True)]
    return Rollouts(env_id, policy, tuple(seeds), observation_space, action_space, *tensors)
