"""The two sides of a comparison: real environments, dreams or recordings, several episodes at a time, in rows."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode

from wm_gym.contexts import Context
from wm_gym.envs.world_model import WorldModelEnv
from wm_gym.envs.world_model_vector import WorldModelVectorEnv


@dataclass(frozen=True)
class Outcome:
    """What a row shows after a reset or a step."""

    frame: np.ndarray  # uint8 [H, W, C]
    reward: float = 0.0
    end: str = ""  # "terminated", "truncated", or "" while the episode goes on
    info: dict[str, Any] = field(default_factory=dict)


class Side(Protocol):
    """Up to `num_rows` episodes that advance together."""

    name: str
    num_rows: int
    takes_context: bool  # whether it starts from given frames and actions, as a dream does
    env: Any  # has observation_space and action_space; policies read them

    def start(self, seeds: Sequence[int], contexts: Sequence[Context] | None) -> list[Outcome]:
        """Starts one episode for each seed (at most `num_rows`), from its context if there are contexts."""
        ...

    def step(self, actions: Sequence[Any], active: Sequence[bool]) -> list[Outcome | None]:
        """Advances the active rows; the others give None, and their actions are ignored."""
        ...

    def close(self) -> None:
        """Frees what the side holds."""


@dataclass(frozen=True)
class Spaces:
    """Stands for an environment where only its spaces are looked at."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]


class EnvSide:
    """One environment for each row, made when it is first needed. Makes the first at once.

    Args:
        env_id, kwargs: for `gym.make`.
        num_rows: how many.

    Raises:
        ValueError: there is no such environment, it refuses `kwargs`, or its observations are no uint8 images.
        ImportError, FileNotFoundError: what it needs is missing.
    """

    def __init__(self, env_id: str, kwargs: dict[str, Any], num_rows: int) -> None:
        self.name = env_id
        self.num_rows = num_rows
        self._kwargs = kwargs
        self._envs = [make_env(env_id, kwargs)]
        self.env = self._envs[0]
        self.takes_context = isinstance(self.env.unwrapped, WorldModelEnv)

    def start(self, seeds: Sequence[int], contexts: Sequence[Context] | None) -> list[Outcome]:
        """See `Side`."""
        while len(self._envs) < len(seeds):
            self._envs.append(make_env(self.name, self._kwargs))
        outcomes = []
        for row, seed in enumerate(seeds):
            options = None if contexts is None else {"context": (contexts[row].frames, contexts[row].actions)}
            obs, info = self._envs[row].reset(seed=seed, options=options)
            outcomes.append(Outcome(np.array(obs), info=info))
        return outcomes

    def step(self, actions: Sequence[Any], active: Sequence[bool]) -> list[Outcome | None]:
        """See `Side`."""
        outcomes: list[Outcome | None] = []
        for env, action, is_active in zip(self._envs, actions, active, strict=False):
            if not is_active:
                outcomes.append(None)
                continue
            obs, reward, terminated, truncated, info = env.step(action)
            outcomes.append(Outcome(np.array(obs), float(reward), _end(terminated, truncated), info))
        return outcomes

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()


class DreamBatchSide:
    """All rows in one `WorldModelVectorEnv`, so that a GPU dreams them together; its rows do not know each other.

    Args as `EnvSide`, for an id whose vector entry point is that class. Raises as `EnvSide`.
    """

    takes_context = True

    def __init__(self, env_id: str, kwargs: dict[str, Any], num_rows: int) -> None:
        self.name = env_id
        self.num_rows = num_rows
        # Ended rows would otherwise be started from packaged clips, which may not fit the model.
        kwargs = {**kwargs, "autoreset_mode": AutoresetMode.DISABLED}
        with _one_sentence(env_id, kwargs):
            self._envs: Any = gym.make_vec(env_id, num_envs=num_rows, vectorization_mode="vector_entry_point", **kwargs)
        self._contexts: list[Context] = []
        self._num_used = 0
        self._ended = np.zeros(num_rows, np.bool_)
        self.env = Spaces(self._envs.single_observation_space, self._envs.single_action_space)

    def start(self, seeds: Sequence[int], contexts: Sequence[Context] | None) -> list[Outcome]:
        """See `Side`."""
        assert contexts is not None
        missing = self.num_rows - len(seeds)  # rows that nobody asked for dream along
        self._contexts = [*contexts, *[contexts[-1]] * missing]
        self._num_used = len(seeds)
        self._ended[:] = False
        obs, _ = self._envs.reset(seed=[*seeds, *[seeds[-1]] * missing], options={"context": self._stacked()})
        return [Outcome(frame) for frame in obs[: len(seeds)]]

    def step(self, actions: Sequence[Any], active: Sequence[bool]) -> list[Outcome | None]:
        """See `Side`."""
        if self._ended.any():
            # They go on from their context, unseen: the batch steps as a whole.
            self._envs.reset(options={"context": self._stacked(), "reset_mask": self._ended})
        given = np.stack([*actions, *[actions[-1]] * (self.num_rows - len(actions))])
        obs, rewards, terminated, truncated, _ = self._envs.step(given)
        self._ended = np.asarray(terminated | truncated)
        return [
            Outcome(obs[row], float(rewards[row]), _end(terminated[row], truncated[row])) if active[row] else None
            for row in range(self._num_used)
        ]

    def close(self) -> None:
        """Closes the vector environment."""
        self._envs.close()

    def _stacked(self) -> tuple[np.ndarray, np.ndarray]:
        frames, actions = zip(*((context.frames, context.actions) for context in self._contexts), strict=True)
        return np.stack(frames), np.stack(actions)


def make_side(env_id: str, kwargs: dict[str, Any], num_rows: int, horizon: int, device: str) -> Side:
    """The side for an environment id; dreams get a horizon and a device where `kwargs` name none.

    Raises as `EnvSide`.
    """
    spec = _spec(env_id)
    if spec is not None and _is_kind(spec.entry_point, WorldModelEnv):
        kwargs = {"horizon": horizon, "device": device, **kwargs}
        if num_rows > 1 and _is_kind(spec.vector_entry_point, WorldModelVectorEnv):
            return DreamBatchSide(env_id, kwargs, num_rows)
    return EnvSide(env_id, kwargs, num_rows)


def make_env(env_id: str, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """`gym.make`. Raises as `EnvSide`."""
    with _one_sentence(env_id, kwargs):
        return gym.make(env_id, disable_env_checker=True, **kwargs)


def checkpoint_of(env_id: str, kwargs: dict[str, Any]) -> str | None:
    """Name or path of the checkpoint that a dream of this id is made from; None if it is no dream."""
    spec = _spec(env_id)
    if spec is None or not _is_kind(spec.entry_point, WorldModelEnv):
        return None
    default = inspect.signature(WorldModelEnv).parameters["checkpoint"].default
    return str({"checkpoint": default, **spec.kwargs, **kwargs}["checkpoint"])


def check_spaces(env: Side, reference: Side) -> None:
    """Raises ValueError unless both sides show images of one shape (1 or 3 channels) and take the same actions."""
    ours, theirs = env.env, reference.env
    space = theirs.observation_space
    is_image = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    if not (is_image and space.shape[2] in (1, 3)):
        raise ValueError(
            f"Only environments that show uint8 images [H, W, C] of 1 or 3 channels are compared; {reference.name} has "
            f"{space}."
        )
    for kind in ("observation_space", "action_space"):
        if getattr(ours, kind) != getattr(theirs, kind):
            raise ValueError(
                f"Only environments with the same spaces can be compared: the {kind.replace('_', ' ')} of {env.name} "
                f"is {getattr(ours, kind)}, that of {reference.name} is {getattr(theirs, kind)}."
            )


def parse_kwargs(name: str, text: str) -> dict[str, Any]:
    """Arguments of `gym.make` from a JSON object. Raises ValueError that names the option otherwise."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be a JSON object, got {text!r} ({error}).") from error
    if not isinstance(given, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}.")
    return given


@contextlib.contextmanager
def _one_sentence(env_id: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turns what `gym.make` raises for an unknown id or refused arguments into a ValueError."""
    # What constructors raise for arguments that they do not know; without any, it is a fault to be seen in full.
    refusals = (AssertionError, TypeError) if kwargs else ()
    try:
        yield
    except (gym.error.Error, ModuleNotFoundError, *refusals) as error:
        given = f" with {kwargs}" if kwargs else ""
        raise ValueError(f"Cannot make the environment {env_id!r}{given}: {error}") from error


def _spec(env_id: str) -> EnvSpec | None:
    """The registered entry; None for an id that only `gym.make` can resolve or refuse."""
    module, _, name = env_id.rpartition(":")
    if module:
        with _one_sentence(env_id, {}):
            importlib.import_module(module)
    return gym.registry.get(name)


def _is_kind(entry_point: Any, kind: type) -> bool:
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return isinstance(creator, type) and issubclass(creator, kind)


def _end(terminated: Any, truncated: Any) -> str:
    return "terminated" if terminated else "truncated" if truncated else ""
