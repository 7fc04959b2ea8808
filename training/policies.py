"""The recording policies, which live in `wm_gym.policies` because the demonstration in the wheel needs them too, and
those that users write: PACKAGE.MODULE:FUNCTION."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym

from wm_gym.policies import Navigator, Policy, RandomPolicy
from wm_gym.policies import make_policy as make_named_policy

__all__ = ["Navigator", "Policy", "RandomPolicy", "make_policy"]


class FunctionPolicy:
    """A plain function of (obs, info) as a policy."""

    def __init__(self, function: Callable[[Any, dict[str, Any]], Any]) -> None:
        self._function = function

    def reset(self, info: dict[str, Any]) -> None:
        """Nothing to do: a function keeps nothing."""

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        return self._function(obs, info)


def make_policy(name: str, env: gym.Env[Any, Any], seed: int) -> Policy:
    """Makes a policy for one episode of `env`.

    Args:
        name: "random", "navigator", or "PACKAGE.MODULE:FUNCTION". The function is called as function(env, seed) before
            each episode and returns a `Policy`, or a callable (obs, info) -> action. It sees the environment's own
            observations, whatever of them is recorded, and takes all its randomness from the seed.
        env: what the policy acts in; it may read the spaces, and must not step it.
        seed: decides all of the policy's randomness.

    Raises:
        ValueError: no such policy, one that does not fit the environment, or a function that returns none.
    """
    if ":" not in name:
        try:
            return make_named_policy(name, env, seed)
        except ValueError as error:
            if name in ("random", "navigator"):
                raise
            raise ValueError(f"A policy is 'random', 'navigator' or PACKAGE.MODULE:FUNCTION, got {name!r}.") from error
    function = _import_function(name)
    try:
        inspect.signature(function).bind(env, seed)
    except TypeError as error:
        raise ValueError(
            f"The policy {name} is called as function(env, seed), which it does not take: {error}."
        ) from error
    policy = function(env, seed)
    if not callable(policy):
        raise ValueError(
            f"The policy {name} must return something that is called with (obs, info) and gives an action, "
            f"got {type(policy).__name__}."
        )
    has_reset = callable(getattr(policy, "reset", None))
    return cast(Policy, policy) if has_reset else FunctionPolicy(policy)


def _import_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"Cannot import the policy {name!r}: {error}.") from error
    if not callable(function):
        raise ValueError(f"The module {module_name} has no function {function_name!r}, of which a policy could come.")
    return function
