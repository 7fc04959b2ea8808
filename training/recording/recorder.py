"""The process that records one episode after the other, or several at a time."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import zarr

from training.recording.episode import RunningEpisode, Step, make_env, policy_seed
from training.recording.frames import FrameSource, RecordingOptions
from training.recording.policies import make_policy
from training.store.episode_store import EpisodeWriter, open_store

FRAMES_PER_MESSAGE = 50


class _CollectorGone(Exception):
    """The process that gives out the seeds is dead."""


class Rows(Protocol):
    """Environments of one kind, each with its own episodes; `env(row)` is to be read only."""

    def env(self, row: int) -> gym.Env[Any, Any]:
        """The environment of a row."""
        ...

    def reset(self, row: int, seed: int) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in a row; returns observation and info."""
        ...

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """Takes one action in each of the given rows; returns what `env.step` gives, by row."""
        ...

    def close(self) -> None:
        """Closes all environments."""
        ...


class SeparateRows:
    """Any environments, which are stepped one after the other."""

    def __init__(self, envs: list[gym.Env[Any, Any]]) -> None:
        self._envs = envs

    def env(self, row: int) -> gym.Env[Any, Any]:
        """The environment of a row."""
        return self._envs[row]

    def reset(self, row: int, seed: int) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in a row; returns observation and info."""
        return self._envs[row].reset(seed=seed)

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """Takes the actions one after the other."""
        return {row: self._envs[row].step(action) for row, action in actions.items()}

    def close(self) -> None:
        """Closes all environments."""
        for env in self._envs:
            env.close()


class JointRows:
    """The rows of a vector environment that has `reset_row` and `step_rows`, as that of Memory Maze.

    Args:
        rows: the vector environment.
        env: a single environment of the same kind.
    """

    def __init__(self, rows: Any, env: gym.Env[Any, Any]) -> None:
        self._rows, self._env = rows, env

    def env(self, row: int) -> gym.Env[Any, Any]:
        """The single environment, which has the spaces of every row."""
        return self._env

    def reset(self, row: int, seed: int) -> tuple[Any, dict[str, Any]]:
        """Begins an episode in a row; returns observation and info."""
        return self._rows.reset_row(row, seed)

    def step(self, actions: Mapping[int, Any]) -> dict[int, Step]:
        """Takes the actions together."""
        return self._rows.step_rows(actions)

    def close(self) -> None:
        """Closes all environments."""
        self._rows.close()
        self._env.close()


def make_rows(env_id: str, num_rows: int, max_episode_steps: int | None, options: RecordingOptions) -> Rows:
    """`num_rows` environments, joint ones if the environment has them, is made without further arguments, and its
    observations are what is recorded.

    Raises as `make_env`.
    """
    env = make_env(env_id, max_episode_steps, options)
    has_vector = env.spec is not None and env.spec.vector_entry_point is not None
    if num_rows > 1 and has_vector and not options.make_arguments():
        limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        arguments: Any = {"num_envs": num_rows, "vectorization_mode": "vector_entry_point", **limit}
        vector = gym.make_vec(env_id, **arguments)
        if hasattr(vector, "step_rows"):
            return JointRows(vector, env)
        vector.close()
    return SeparateRows([env, *(make_env(env_id, max_episode_steps, options) for _ in range(num_rows - 1))])


def record_seeds(
    connection: Connection,
    path: Path,
    split: str,
    env_id: str,
    policy_name: str,
    max_episode_steps: int | None,
    num_rows: int = 1,
) -> None:
    """Records the episodes whose seeds come in, until the connection is closed. Runs in a process of its own.

    As many as `num_rows` at a time; each is the same whatever the others are. Sends ("frames", seed, count) now and
    then, and ("finished", seed, number of frames) after each episode.
    """
    zarr.config.set({"threading.max_workers": 1})
    store = open_store(path)
    writer = EpisodeWriter(store, split)
    options = RecordingOptions.from_json(store.header.recording)
    rows = make_rows(env_id, num_rows, max_episode_steps, options)

    def send(kind: str, seed: int, count: int) -> None:
        try:
            connection.send((kind, seed, count))
        except OSError as error:
            raise _CollectorGone from error

    def begin(row: int, seed: int) -> RunningEpisode:
        env = rows.env(row)
        policy = make_policy(policy_name, env, policy_seed(seed))
        return RunningEpisode(env.action_space, policy, FrameSource(env, options), seed, *rows.reset(row, seed))

    running: dict[int, RunningEpisode] = {}
    try:
        while True:
            while len(running) < num_rows and (not running or connection.poll()):
                row = next(row for row in range(num_rows) if row not in running)
                running[row] = begin(row, connection.recv())
            actions = {row: episode.action() for row, episode in running.items()}
            for row, outcome in rows.step(actions).items():
                builder = running[row].builder
                ended = running[row].add(actions[row], outcome)
                if ended:
                    seed = builder.seed
                    writer.write(builder.finish({"policy": policy_name, "policy_seed": policy_seed(seed)}))
                    del running[row]
                    send("finished", seed, builder.num_frames)
                elif builder.num_frames % FRAMES_PER_MESSAGE == 0:
                    send("frames", builder.seed, FRAMES_PER_MESSAGE)
    except (EOFError, ConnectionResetError, _CollectorGone):
        return  # there is nobody left to record for
    finally:
        rows.close()
