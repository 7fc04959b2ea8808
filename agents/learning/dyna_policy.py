"""What `agents.dyna` records with: `python -m training.collect --policy agents.learning.dyna_policy:act`.

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

from agents.policies.acting import make_agent
from agents.policies.loading import PolicyMaker
from wm_gym.policies.base import Policy
from wm_gym.policies.loading import load_policy

VARIABLE = "WM_GYM_DYNA"
STREAM = 3  # keeps the choice of a policy apart from the numbers that it draws from the same seed


def act(env: gym.Env[Any, Any], seed: int) -> Policy:
    """The policy of one episode: with the chance `explore` the first one, else one of the run's training seeds.

    Raises:
        KeyError: the environment variable is not set.
        FileNotFoundError: no such file, or a run that has saved nothing.
        ValueError: a policy that does not fit the environment.
    """
    record = json.loads(Path(os.environ[VARIABLE]).read_text())
    explores = np.random.default_rng((seed, STREAM)).random() < record["explore"]
    if record["run"] is None or explores:
        return load_policy(record["first_policy"], env, seed)
    return _agent(record["run"])(env, seed)


@lru_cache(maxsize=1)
def _agent(run: str) -> PolicyMaker:
    """Loads its models once; a run's models do not change while it is recorded with."""
    return make_agent(run)
