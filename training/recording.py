"""One episode of a real environment, and the process that records one after the other."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import zarr

from training.policies import Policy, make_policy
from training.store import Episode, EpisodeWriter, open_store

FRAMES_PER_MESSAGE = 50
POLICY_STREAM = 1  # keeps a policy's random numbers apart from those that its environment draws from the same seed
STATIC_INFO = ("layout", "targets")  # what stays the same in an episode and is recorded once


class _CollectorGone(Exception):
    """The process that gives out the seeds is dead."""


def make_env(env_id: str, max_episode_steps: int | None = None) -> gym.Env[Any, Any]:
    """`gym.make`, after importing the package that the id's namespace names, such as wm_gym.

    Raises:
        ValueError: there is no such environment.
        ImportError: a package is missing that it needs.
    """
    namespace = env_id.partition("/")[0]
    if "/" in env_id and namespace.isidentifier() and importlib.util.find_spec(namespace) is not None:
        importlib.import_module(namespace)
    try:
        return gym.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True)
    except gym.error.Error as error:
        raise ValueError(f"Cannot make environment {env_id!r}: {error}") from error


def policy_seed(seed: int) -> int:
    """The policy's seed for the episode of an environment seed."""
    return int(np.random.SeedSequence((seed, POLICY_STREAM)).generate_state(1)[0])


def record_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    seed: int,
    attributes: dict[str, Any] | None = None,
    on_frames: Callable[[int], None] = lambda count: None,
) -> Episode:
    """Plays one episode to its end.

    Args:
        env, policy: see `make_env` and `make_policy`.
        seed: of the environment's reset.
        attributes: JSON types to be kept with the episode.
        on_frames: called now and then with the number of frames since the last call.
    """
    action_dtype = np.int64 if isinstance(env.action_space, gym.spaces.Discrete) else np.float32
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    static = {name: np.asarray(info[name]).tolist() for name in STATIC_INFO if name in info}
    # Copies, for an environment may give the same buffer every time.
    frames, poses = [np.array(obs)], [_pose(info)]
    actions, rewards, terminations, truncations = [], [], [], []
    ended = False
    while not ended:
        action = policy(obs, info)
        obs, reward, terminated, truncated, info = env.step(action)
        frames.append(np.array(obs))
        poses.append(_pose(info))
        actions.append(np.array(action, action_dtype))
        rewards.append(reward)
        terminations.append(terminated)
        truncations.append(truncated)
        ended = terminated or truncated
        if len(frames) % FRAMES_PER_MESSAGE == 0:
            on_frames(FRAMES_PER_MESSAGE)
    return Episode(
        seed=seed,
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminations=np.array(terminations, np.bool_),
        truncations=np.array(truncations, np.bool_),
        pose=np.stack(poses),
        attributes={**static, **(attributes or {})},
    )


def record_seeds(
    connection: Connection, path: Path, split: str, env_id: str, policy_name: str, max_episode_steps: int | None
) -> None:
    """Records the episodes whose seeds come in, until the connection is closed. Runs in a process of its own.

    Sends ("frames", count) now and then, and ("finished", number of frames) after each episode.
    """
    zarr.config.set({"threading.max_workers": 1})
    writer = EpisodeWriter(open_store(path), split)
    env = make_env(env_id, max_episode_steps)

    def send(kind: str, count: int) -> None:
        try:
            connection.send((kind, count))
        except OSError as error:
            raise _CollectorGone from error

    try:
        while True:
            seed = connection.recv()
            attributes = {"policy": policy_name, "policy_seed": policy_seed(seed)}
            policy = make_policy(policy_name, env, attributes["policy_seed"])
            episode = record_episode(env, policy, seed, attributes, on_frames=lambda count: send("frames", count))
            writer.write(episode)
            send("finished", episode.num_frames)
    except (EOFError, ConnectionResetError, _CollectorGone):
        return  # there is nobody left to record for
    finally:
        env.close()


def _pose(info: dict[str, Any]) -> np.ndarray:
    return np.array(info.get("pose", ()), np.float32)
