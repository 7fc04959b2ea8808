"""What `agents.ppo` learned as a policy for environments that show frames and nothing else.

`make_agent("runs/agent")` in a module of yours makes one for `wm-gym compare`, `wm-gym play` and `training.collect`:

    act = make_agent("runs/agent")  # --policy yours:act

They also take RUN/seed_0/best.zip itself, if it learned without --memory; it then always does what it thinks best.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from agents.environments.settings import MemorySpec
from agents.policies.loading import PolicyMaker, policy_maker, policy_models
from wm_gym.comparison.sides import Spaces
from wm_gym.policies.base import Policy
from wm_gym.wrappers.memory import FrameReader

STREAM = 2  # keeps the choice of a training seed apart from the numbers that its policy draws from the same seed


class RememberingPolicy:
    """A policy that learned with a world model's memory, where nothing shows it: it reads the frames itself.

    Args:
        make: a policy that sees {"image", "memory"}, for an environment of such spaces, and a seed.
        seed: for it.
        memory: of which model, and how much.
        env: for its spaces.

    Raises ValueError or FileNotFoundError as `wm_gym.wrappers.memory.FrameReader`.
    """

    def __init__(self, make: PolicyMaker, seed: int, memory: MemorySpec, env: gym.Env[Any, Any]) -> None:
        self._reader = FrameReader(memory.checkpoint, 1, "cpu", env.observation_space, env.action_space)
        self._feature = memory.remembered(self._reader.model)
        self._policy = make(Spaces(self._feature.with_image(env.observation_space), env.action_space), seed)
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
        memory = self._feature(self._reader.memory)[0].numpy()
        self._action = self._policy({"image": obs, "memory": memory}, info)
        return self._action


def make_agent(path: str) -> PolicyMaker:
    """A function (env, seed) -> policy of one episode, for a run of `agents.ppo` or one of its model files.

    Of a run, the seed decides which of its training seeds acts. Models are loaded once, when they are first needed.
    Raises FileNotFoundError for a run that has saved nothing; the function raises what loading and other spaces raise.
    """
    models, memory = policy_models(path)
    makers = {name: policy_maker(model) for name, model in models.items()}

    def make(env: gym.Env[Any, Any], seed: int) -> Policy:
        names = sorted(makers)
        make_one = makers[names[int(np.random.default_rng((seed, STREAM)).integers(len(names)))]]
        if memory is None:
            return make_one(env, seed)
        return RememberingPolicy(make_one, seed, memory, env)

    return make
