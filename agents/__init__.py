"""Agents that learn and plan inside a world model, and are scored outside it, in the real environment."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wm_gym.moved import accept_old_names

if TYPE_CHECKING:
    from agents.environments.sb3 import Sb3VecEnv
    from agents.learning.config import PRESETS, PpoConfig
    from agents.planners.mcts import MctsConfig, make_search
    from agents.planners.rollouts import RolloutConfig, make_rollouts
    from agents.planners.shooting import PlannerConfig, make_planner

__all__ = [
    "PRESETS",
    "MctsConfig",
    "PlannerConfig",
    "PpoConfig",
    "RolloutConfig",
    "Sb3VecEnv",
    "make_planner",
    "make_rollouts",
    "make_search",
]
# Where they are; each is loaded when it is first used, so that commands start at once.
_MODULES = {
    "MctsConfig": "agents.planners.mcts",
    "PRESETS": "agents.learning.config",
    "PlannerConfig": "agents.planners.shooting",
    "PpoConfig": "agents.learning.config",
    "RolloutConfig": "agents.planners.rollouts",
    "Sb3VecEnv": "agents.environments.sb3",
    "make_planner": "agents.planners.shooting",
    "make_rollouts": "agents.planners.rollouts",
    "make_search": "agents.planners.mcts",
}

accept_old_names()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
