"""A small store of toy episodes, recorded in this process; for tests that need data and not the collector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.toy_env import ENV_ID
from training.recording.episode import make_env, policy_seed, record_episode
from training.recording.policies import make_policy
from training.store.episode_store import Episode, EpisodeStore, EpisodeWriter, StoreHeader, create_store

TOY_ENV = f"tests.toy_env:{ENV_ID}"


def toy_episode(seed: int, max_episode_steps: int = 40) -> Episode:
    """The random policy's episode: uint8 frames [max_episode_steps + 1, 16, 16, 3], 3 actions, pose [..., 4]."""
    env = make_env(TOY_ENV, max_episode_steps)
    return record_episode(env, make_policy("random", env, policy_seed(seed)), seed, {"policy": "random"})


def toy_header() -> StoreHeader:
    env = make_env(TOY_ENV)
    return StoreHeader(TOY_ENV, env.observation_space, env.action_space, "random")


def make_toy_store(
    path: Path, seeds: Iterable[int] = range(3), max_episode_steps: int = 40, split: str = "train"
) -> EpisodeStore:
    """Adds one episode per seed to the store at `path`, which is made if it is not there."""
    store = create_store(path, toy_header())
    writer = EpisodeWriter(store, split)
    for seed in seeds:
        writer.write(toy_episode(seed, max_episode_steps))
    return store
