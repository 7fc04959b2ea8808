"""The recording policies, which live in `wm_gym.policies.base` because the demonstration in the wheel needs them too,
and those that users write: PACKAGE.MODULE:FUNCTION."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np

from wm_gym.policies.backtrack import Backtracker
from wm_gym.policies.base import Navigator, Policy, RandomPolicy
from wm_gym.policies.base import make_policy as make_named_policy
from wm_gym.policies.loading import FunctionPolicy, make_function_policy

__all__ = ["FunctionPolicy", "Navigator", "Policy", "RandomPolicy", "make_policy"]

MIXTURE = (0.1, 0.3, 0.25, 0.2, 0.15)  # of "mixed": navigator, restless, random, sticky, backtrack
MIXTURE_STREAM = 5  # keeps this choice apart from the policies' own random numbers


def make_policy(name: str, env: gym.Env[Any, Any], seed: int) -> Policy:
    """Makes a policy for one episode of `env`.

    Args:
        name: "random", "sticky", "navigator", "restless" (Memory Maze; a navigator that random actions interrupt),
            "backtrack-N" (Memory Maze; walks for N steps and then back the way it came), "mixed" (Memory Maze; one of
            these in each episode, a restless navigator or random actions in most), or "PACKAGE.MODULE:FUNCTION". The
            function is called as function(env, seed) before each episode and returns a `Policy`, or a callable
            (obs, info) -> action. It sees the environment's own observations, whatever of them is recorded, and takes
            all its randomness from the seed.
        env: what the policy acts in; it may read the spaces, and must not step it.
        seed: decides all of the policy's randomness.

    Raises:
        ValueError: no such policy, one that does not fit the environment, or a function that returns none.
    """
    if ":" in name:
        return make_function_policy(name, env, seed)
    if name == "mixed":
        name = mixed_policy_name(seed)
    if match := re.fullmatch(r"backtrack-(\d+)", name):
        make_named_policy("navigator", env, seed)  # raises for an environment that it cannot walk in
        return Backtracker(seed, int(match[1]))
    try:
        return make_named_policy(name, env, seed)
    except ValueError as error:
        if name in ("random", "sticky", "navigator", "restless"):
            raise
        known = "'random', 'sticky', 'navigator', 'restless', 'backtrack-N', 'mixed' or PACKAGE.MODULE:FUNCTION"
        raise ValueError(f"A policy is {known}, got {name!r}.") from error


def mixed_policy_name(seed: int) -> str:
    """What "mixed" plays in an episode. Agents that learn in a dream begin with random actions: it must know them."""
    rng = np.random.default_rng((seed, MIXTURE_STREAM))
    names = ("navigator", "restless", "random", "sticky", f"backtrack-{rng.integers(100, 500)}")
    return str(rng.choice(names, p=MIXTURE))
