"""What `agents.dyna` records with: `python -m training.collect --policy agents.dyna_policy:act`.

Which policies act stands in the file that the environment variable WM_GYM_DYNA names. A seed decides which of them acts
in its episode, so that a store does not depend on who records it.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from agents.environments import MemorySpec
from agents.policies import PolicyMaker, policy_maker
from agents.results import policy_models
from wm_gym.comparison.sides import Spaces
from wm_gym.memory_feature import MemoryFeature
from wm_gym.policies import Policy
from wm_gym.policy_loading import load_policy
from wm_gym.wrappers import FrameReader

VARIABLE = "WM_GYM_DYNA"
STREAM = 2  # keeps the choice of a policy apart from the numbers that it draws from the same seed


class RememberingPolicy:
    """A policy that learned with a world model's memory, where nothing shows it: it reads the frames itself."""

    def __init__(self, policy: Policy, memory: MemorySpec, env: gym.Env[Any, Any]) -> None:
        self._policy, self._env = policy, env
        self._reader = FrameReader(memory.checkpoint, 1, "cpu", env.observation_space, env.action_space)
        self._feature = MemoryFeature(self._reader.model.config, memory.size, memory.seed)
        self._action: Any = None

    def reset(self, info: dict[str, Any]) -> None:
        """Forgets the episode before."""
        self._policy.reset(info)
        self._action = None

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        """The action at a frame, which follows the action that was returned last."""
        if self._action is None:
            self._reader.start(obs[None])
        else:
            self._reader.read(obs[None], [self._action])
        memory = self._feature(self._reader.ssm_states)[0].numpy()
        self._action = self._policy({"image": obs, "memory": memory}, info)
        return self._action


def act(env: gym.Env[Any, Any], seed: int) -> Policy:
    """The policy of one episode: with the chance `explore` the first one, else one of the run's training seeds.

    Raises:
        KeyError: the environment variable is not set.
        FileNotFoundError: no such file, or a run that has saved nothing.
        ValueError: a policy that does not fit the environment.
    """
    record = json.loads(Path(os.environ[VARIABLE]).read_text())
    random = np.random.default_rng((seed, STREAM))
    if record["run"] is None or random.random() < record["explore"]:
        return load_policy(record["first_policy"], env, seed)
    models, memory = policy_models(record["run"])
    path = models[sorted(models)[int(random.integers(len(models)))]]
    space: Any = env.observation_space
    if memory is not None:
        space = gym.spaces.Dict({"image": space, "memory": gym.spaces.Box(-np.inf, np.inf, (memory.size,), np.float32)})
    policy = _maker(path)(Spaces(space, env.action_space), seed)
    return policy if memory is None else RememberingPolicy(policy, memory, env)


@lru_cache(maxsize=8)
def _maker(path: str) -> PolicyMaker:
    """Loads its model once; a run's models do not change while it is recorded with."""
    return policy_maker(path)
