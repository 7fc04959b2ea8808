"""One episode of a real environment, and the process that records one after the other."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import zarr

from training.frames import FrameSource, RecordingOptions
from training.policies import Policy, make_policy
from training.store import Episode, EpisodeWriter, open_store
from wm_gym.policies import policy_seed

__all__ = [
    "EpisodeBuilder",
    "FrameSource",
    "RecordingOptions",
    "make_env",
    "policy_seed",
    "record_episode",
    "record_seeds",
    "recorded_action_space",
]

FRAMES_PER_MESSAGE = 50
STATIC_INFO = ("layout", "targets")  # what stays the same in an episode and is recorded once


class _CollectorGone(Exception):
    """The process that gives out the seeds is dead."""


def make_env(
    env_id: str, max_episode_steps: int | None = None, options: RecordingOptions | None = None
) -> gym.Env[Any, Any]:
    """`gym.make`, after importing the package that the id's namespace names, such as wm_gym.

    Raises:
        ValueError: there is no such environment, or it does not take the options.
        ImportError: a package is missing that it needs.
    """
    namespace = env_id.partition("/")[0]
    if "/" in env_id and namespace.isidentifier() and importlib.util.find_spec(namespace) is not None:
        importlib.import_module(namespace)
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("PYGLET_HEADLESS", "true")  # pyglet, and so MiniWorld, then renders by EGL
    arguments = {} if options is None else options.make_arguments()
    # What constructors raise for arguments that they do not know; without any, it is a fault to be seen in full.
    refusals = (AssertionError, TypeError, ValueError) if arguments else ()
    try:
        return gym.make(env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **arguments)
    except (gym.error.Error, *refusals) as error:
        given = f" with {arguments}" if arguments else ""
        raise ValueError(f"Cannot make environment {env_id!r}{given}: {error}") from error


def recorded_action_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """The action space as a store keeps it: a float64 Box becomes a float32 one, anything else stays as it is."""
    if isinstance(space, gym.spaces.Box) and space.dtype == np.float64:
        return gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space


class EpisodeBuilder:
    """Collects one episode, frame by frame.

    Args:
        action_space: as `recorded_action_space` gives it.
        seed: of the environment's reset.
        frame: the first one, uint8 [H, W, C]; it is kept, not copied.
        info: of the reset; "pose", "layout" and "targets" are recorded if they are there.
    """

    def __init__(self, action_space: gym.Space[Any], seed: int, frame: np.ndarray, info: dict[str, Any]) -> None:
        self._action_space = action_space
        self.seed = seed
        self._static = {name: np.asarray(info[name]).tolist() for name in STATIC_INFO if _is_numeric(info.get(name))}
        self._frames = [frame]
        self._poses = [_pose(info)]
        self._actions: list[Any] = []
        self._rewards: list[float] = []
        self._terminations: list[bool] = []
        self._truncations: list[bool] = []

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    def action(self, action: Any) -> Any:
        """The action as it is recorded and is to be taken. Raises ValueError if it is not in the action space."""
        space = self._action_space
        if isinstance(space, gym.spaces.Box):
            action = np.asarray(action, space.dtype)
        if not space.contains(action):
            raise ValueError(f"The action {action!r} at frame {self.num_frames - 1} is not in {space}.")
        return action

    def add(
        self, action: Any, frame: np.ndarray, reward: Any, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        """What `env.step(action)` gave. Raises ValueError if the pose changes its length."""
        pose = _pose(info)
        if pose.shape != self._poses[0].shape:
            raise ValueError(
                f"info['pose'] has shape {list(pose.shape)} at frame {self.num_frames} of the episode of seed "
                f"{self.seed}, and {list(self._poses[0].shape)} at frame 0; it must be there always, or never."
            )
        self._frames.append(frame)
        self._poses.append(pose)
        self._actions.append(action)
        self._rewards.append(float(reward))
        self._terminations.append(bool(terminated))
        self._truncations.append(bool(truncated))

    def finish(self, attributes: dict[str, Any] | None = None, cut: bool = False) -> Episode:
        """The episode. `cut` marks its last step as truncated; `attributes` are JSON types to be kept with it."""
        truncations = np.array(self._truncations, np.bool_)
        truncations[-1] |= cut
        discrete = isinstance(self._action_space, gym.spaces.Discrete)
        return Episode(
            seed=self.seed,
            frames=np.stack(self._frames),
            actions=np.array(self._actions, np.int64 if discrete else np.float32),
            rewards=np.array(self._rewards, np.float32),
            terminations=np.array(self._terminations, np.bool_),
            truncations=truncations,
            pose=np.stack(self._poses),
            attributes={**self._static, **(attributes or {})},
        )


def record_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    seed: int,
    attributes: dict[str, Any] | None = None,
    on_frames: Callable[[int], None] = lambda count: None,
    options: RecordingOptions | None = None,
) -> Episode:
    """Plays one episode to its end.

    Args:
        env, policy: see `make_env` and `make_policy`.
        seed: of the environment's reset.
        attributes: JSON types to be kept with the episode.
        on_frames: called now and then with the number of frames since the last call.
        options: which image is recorded; the policy sees the environment's own observation all the same.

    Raises:
        ValueError: there is no such image, or an action is not in the action space.
    """
    read_frame = FrameSource(env, options or RecordingOptions())
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    builder = EpisodeBuilder(recorded_action_space(env.action_space), seed, read_frame(obs), info)
    ended = False
    while not ended:
        action = builder.action(policy(obs, info))
        obs, reward, terminated, truncated, info = env.step(action)
        builder.add(action, read_frame(obs), reward, terminated, truncated, info)
        ended = terminated or truncated
        if builder.num_frames % FRAMES_PER_MESSAGE == 0:
            on_frames(FRAMES_PER_MESSAGE)
    return builder.finish(attributes)


def record_seeds(
    connection: Connection, path: Path, split: str, env_id: str, policy_name: str, max_episode_steps: int | None
) -> None:
    """Records the episodes whose seeds come in, until the connection is closed. Runs in a process of its own.

    Sends ("frames", count) now and then, and ("finished", number of frames) after each episode.
    """
    zarr.config.set({"threading.max_workers": 1})
    store = open_store(path)
    writer = EpisodeWriter(store, split)
    options = RecordingOptions.from_json(store.header.recording)
    env = make_env(env_id, max_episode_steps, options)

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
            episode = record_episode(env, policy, seed, attributes, lambda count: send("frames", count), options)
            writer.write(episode)
            send("finished", episode.num_frames)
    except (EOFError, ConnectionResetError, _CollectorGone):
        return  # there is nobody left to record for
    finally:
        env.close()


def _pose(info: dict[str, Any]) -> np.ndarray:
    pose = np.array(info.get("pose", ()), np.float32)
    if pose.ndim != 1:
        raise ValueError(f"info['pose'] must be a vector of numbers, got an array of shape {list(pose.shape)}.")
    return pose


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and np.asarray(value).dtype.kind in "biuf"
