"""Policies by the text that names them: a known name, a function of the user's, or a Stable-Baselines3 file."""

from __future__ import annotations

import importlib
import inspect
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np

from wm_gym.policies.base import Policy, make_policy

NAMED = ("random", "sticky", "navigator", "restless", "oracle")

# An SB3 file does not name its algorithm, and several share a policy class, but each leaves attributes of its own: the
# first entry whose attribute is there decides. DDPG is a TD3 to whoever only asks for actions.
SB3_ALGORITHMS: tuple[tuple[str, str, str], ...] = (
    ("n_quantiles", "sb3_contrib", "QRDQN"),
    ("top_quantiles_to_drop_per_net", "sb3_contrib", "TQC"),
    ("cg_max_steps", "sb3_contrib", "TRPO"),
    ("exploration_fraction", "stable_baselines3", "DQN"),
    ("policy_delay", "stable_baselines3", "TD3"),
    ("target_entropy", "stable_baselines3", "SAC"),
    ("clip_range", "stable_baselines3", "PPO"),
    ("gae_lambda", "stable_baselines3", "A2C"),
)
RECURRENT_POLICIES = "sb3_contrib.common.recurrent"


def load_policy(spec: str, env: gym.Env[Any, Any], seed: int = 0) -> Policy:
    """The policy that `spec` names. Call `reset(info)` when an episode begins, then the policy with (obs, info).

    Args:
        spec: "random", "sticky", "navigator", "restless" or "oracle" (Memory Maze; the last three read the real
            environment's info), "PACKAGE.MODULE:FUNCTION", or the path of a Stable-Baselines3 model (PATH.zip, of any
            algorithm; extra sb3). The function is called as function(env, seed) and returns a callable
            (obs, info) -> action, which may have `reset(info)` as well.
            Loading an SB3 model runs code that the file holds: load only those that you trust.
        env: what the policy acts in; only its spaces are looked at here.
        seed: decides the randomness of named policies and is passed to functions. SB3 models act without any.

    Returns:
        A policy whose actions are checked: calling it raises ValueError for an action outside `env.action_space`.

    Raises:
        FileNotFoundError: there is no such SB3 file.
        ImportError: an SB3 file without the package that trained it.
        ValueError: no such policy, or one that does not fit the spaces of `env`.
    """
    if spec in NAMED:
        policy = make_policy(spec, env, seed)
    elif spec.endswith(".zip"):
        policy = Sb3Policy(_load_sb3(Path(spec), env))
    elif ":" in spec:
        policy = make_function_policy(spec, env, seed)
    else:
        raise ValueError(
            f"A policy is {', '.join(map(repr, NAMED))}, PACKAGE.MODULE:FUNCTION or the path of a Stable-Baselines3 "
            f"model that ends in .zip, got {spec!r}."
        )
    return CheckedPolicy(policy, env.action_space, spec)


class CheckedPolicy:
    """A policy whose actions are elements of the action space, or a ValueError that names it."""

    def __init__(self, policy: Policy, action_space: gym.Space[Any], name: str) -> None:
        self._policy = policy
        self._action_space = action_space
        self._name = name

    def reset(self, info: dict[str, Any]) -> None:
        """Starts an episode; `info` comes from the environment's reset."""
        self._policy.reset(info)

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        """The action at this observation. Raises ValueError for one that the action space does not have."""
        given = action = self._policy(obs, info)
        space = self._action_space
        if isinstance(space, gym.spaces.Box) and np.asarray(action).dtype.kind in "iuf":
            action = np.asarray(action, space.dtype)
        elif isinstance(space, gym.spaces.Discrete) and isinstance(action, np.ndarray) and action.size == 1:
            action = action.reshape(())[()]
        if not space.contains(action):
            raise ValueError(f"The policy {self._name} chose the action {given!r}, which is not in {space}.")
        return action


class FunctionPolicy:
    """A plain function of (obs, info) as a policy."""

    def __init__(self, function: Callable[[Any, dict[str, Any]], Any]) -> None:
        self._function = function

    def reset(self, info: dict[str, Any]) -> None:
        """Nothing to do: a function keeps nothing."""

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        return self._function(obs, info)


class Sb3Policy:
    """A Stable-Baselines3 model as a policy: its most likely actions, with the memory of a recurrent one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._state: Any = None
        self._starts = True

    def reset(self, info: dict[str, Any]) -> None:
        """Forgets the episode before."""
        self._state, self._starts = None, True

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        action, self._state = self._model.predict(
            obs, state=self._state, episode_start=np.array([self._starts]), deterministic=True
        )
        self._starts = False
        return action


def make_function_policy(spec: str, env: gym.Env[Any, Any], seed: int) -> Policy:
    """What the function PACKAGE.MODULE:FUNCTION returns for (env, seed), as a policy.

    Raises ValueError if there is no such function, or it takes or returns something else.
    """
    function = _import_function(spec)
    try:
        inspect.signature(function).bind(env, seed)
    except TypeError as error:
        raise ValueError(
            f"The policy {spec} is called as function(env, seed), which it does not take: {error}."
        ) from error
    policy = function(env, seed)
    if not callable(policy):
        raise ValueError(
            f"The policy {spec} must return something that is called with (obs, info) and gives an action, "
            f"got {type(policy).__name__}."
        )
    return cast(Policy, policy) if callable(getattr(policy, "reset", None)) else FunctionPolicy(policy)


def _import_function(spec: str) -> Callable[..., Any]:
    module_name, _, function_name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"Cannot import the policy {spec!r}: {error}.") from error
    if not callable(function):
        raise ValueError(f"The module {module_name} has no function {function_name!r}, of which a policy could come.")
    return function


def _load_sb3(path: Path, env: gym.Env[Any, Any]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no policy {str(path)!r}: expected a Stable-Baselines3 model.")
    package, name = _sb3_algorithm(path)
    try:
        algorithm = getattr(importlib.import_module(package), name)
    except ImportError as error:
        distribution = package.replace("_", "-").replace("sb3-contrib", "stable-baselines3 sb3-contrib")
        raise ImportError(f"The policy {path} comes from {name}: `pip install {distribution}`.") from error
    # Off-policy algorithms would reserve the whole replay buffer, which nobody fills here.
    # One observation at a time gains nothing from a GPU, which may be busy with dreams.
    model = algorithm.load(path, device="cpu", custom_objects={"buffer_size": 1})
    _check_spaces(model, env, path)
    return model


def _sb3_algorithm(path: Path) -> tuple[str, str]:
    """Package and class of the algorithm whose attributes the file holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        policy_module = data["policy_class"].get("__module__", "")
    except (zipfile.BadZipFile, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a Stable-Baselines3 model, or it is damaged ({error}).") from error
    if policy_module.startswith(RECURRENT_POLICIES):
        return "sb3_contrib", "RecurrentPPO"
    for attribute, package, name in SB3_ALGORITHMS:
        if attribute in data:
            return package, name
    raise ValueError(
        f"{path} comes from an algorithm that is not known here: write a function that loads it, and give "
        "PACKAGE.MODULE:FUNCTION."
    )


def _check_spaces(model: Any, env: gym.Env[Any, Any], path: Path) -> None:
    """Raises ValueError unless the model acts in spaces like those of `env`; images may be transposed, as SB3 does."""
    ours, theirs = env.observation_space.shape or (), model.observation_space.shape or ()
    transposed = len(ours) == 3 and theirs == (ours[2], ours[0], ours[1])
    if (theirs != ours and not transposed) or model.action_space != env.action_space:
        raise ValueError(
            f"The policy {path} was trained on observations {model.observation_space} and actions "
            f"{model.action_space}; this environment has {env.observation_space} and {env.action_space}."
        )
