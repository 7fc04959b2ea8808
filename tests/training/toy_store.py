"""Stores with episodes of the toy environment, for tests of training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import numpy as np

from training.episode import Episode, StoreHeader
from training.store import EpisodeWriter, create_store

TOY_ENV = "tests.toy_env:tests/ToyMaze-v0"


def make_toy_store(path: Path, seeds: Iterable[int], split: str = "train") -> Path:
    """Records one episode of 41 frames of 16x16 pixels per seed under random actions, mostly forward."""
    env = gym.make(TOY_ENV)
    writer = EpisodeWriter(
        create_store(path, StoreHeader(TOY_ENV, env.observation_space, env.action_space, "random")), split
    )
    for seed in seeds:
        random = np.random.default_rng(seed)
        observation, info = env.reset(seed=seed)
        frames, poses, steps = [observation], [info["pose"]], []
        while not steps or not (steps[-1][2] or steps[-1][3]):
            action = np.int64(random.integers(3) if random.random() < 0.5 else 0)
            observation, reward, terminated, truncated, info = env.step(action)
            frames.append(observation)
            poses.append(info["pose"])
            steps.append((action, reward, terminated, truncated))
        actions, rewards, terminations, truncations = zip(*steps, strict=True)
        writer.write(
            Episode(
                seed=seed,
                frames=np.stack(frames),
                actions=np.array(actions, np.int64),
                rewards=np.array(rewards, np.float32),
                terminations=np.array(terminations, np.bool_),
                truncations=np.array(truncations, np.bool_),
                pose=np.stack(poses),
            )
        )
    env.close()
    return path
