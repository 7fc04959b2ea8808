"""The toy maze with a batched version, `tests.agents.toy_batch:tests/ToyBatch-v0`, as environments of one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from tests.toy_env import ToyMazeEnv

BATCH_ID = "tests.agents.toy_batch:tests/ToyBatch-v0"
STEPS = 7


def make_one(**kwargs: Any) -> gym.Env[Any, Any]:
    return TimeLimit(ToyMazeEnv(**kwargs), STEPS)


def make_several(num_envs: int, autoreset_mode: AutoresetMode, **kwargs: Any) -> SyncVectorEnv:
    return SyncVectorEnv([partial(make_one, **kwargs)] * num_envs, autoreset_mode=autoreset_mode)


gym.register("tests/ToyBatch-v0", entry_point=make_one, vector_entry_point=make_several)
