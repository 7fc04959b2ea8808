"""Recording one episode of a real environment."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from training.recording.frames import FrameSource, RecordingOptions
from training.recording.policies import Policy
from training.store.episode_store import Episode
from wm_gym.policies.base import policy_seed

__all__ = [
    "EpisodeBuilder",
    "FrameSource",
    "RecordingOptions",
    "RunningEpisode",
    "make_env",
    "policy_seed",
    "record_episode",
    "recorded_action_space",
]

STATIC_INFO = ("layout", "targets")  # what stays the same in an episode and is recorded once

Step = tuple[Any, Any, bool, bool, dict[str, Any]]  # what env.step gives


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
        """Frames so far."""
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


class RunningEpisode:
    """An episode that a policy plays and that is recorded on the way.

    Args:
        action_space: of the environment.
        policy: fresh; it is reset here.
        read_frame: what is recorded of an observation.
        seed, obs, info: of the environment's reset.
    """

    def __init__(
        self,
        action_space: gym.Space[Any],
        policy: Policy,
        read_frame: FrameSource,
        seed: int,
        obs: Any,
        info: dict[str, Any],
    ) -> None:
        policy.reset(info)
        self._policy, self._read_frame, self._obs, self._info = policy, read_frame, obs, info
        self.builder = EpisodeBuilder(recorded_action_space(action_space), seed, read_frame(obs), info)

    def action(self) -> Any:
        """The policy's, to be taken now. Raises ValueError if it is not in the action space."""
        return self.builder.action(self._policy(self._obs, self._info))

    def add(self, action: Any, outcome: Step) -> bool:
        """Takes what `env.step(action)` gave; whether the episode has ended."""
        self._obs, reward, terminated, truncated, self._info = outcome
        self.builder.add(action, self._read_frame(self._obs), reward, terminated, truncated, self._info)
        return terminated or truncated


def record_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    seed: int,
    attributes: dict[str, Any] | None = None,
    options: RecordingOptions | None = None,
) -> Episode:
    """Plays one episode to its end.

    Args:
        env, policy: see `make_env` and `make_policy`.
        seed: of the environment's reset.
        attributes: JSON types to be kept with the episode.
        options: which image is recorded; the policy sees the environment's own observation all the same.

    Raises:
        ValueError: there is no such image, or an action is not in the action space.
    """
    read_frame = FrameSource(env, options or RecordingOptions())
    episode = RunningEpisode(env.action_space, policy, read_frame, seed, *env.reset(seed=seed))
    action = episode.action()
    while not episode.add(action, env.step(action)):
        action = episode.action()
    return episode.builder.finish(attributes)


def _pose(info: dict[str, Any]) -> np.ndarray:
    pose = np.array(info.get("pose", ()), np.float32)
    if pose.ndim != 1:
        raise ValueError(f"info['pose'] must be a vector of numbers, got an array of shape {list(pose.shape)}.")
    return pose


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and np.asarray(value).dtype.kind in "biuf"
