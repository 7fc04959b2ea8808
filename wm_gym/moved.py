"""Modules under their names before 0.2.0: importing one works for one release, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

# Also those that the files of agents name, which Stable-Baselines3 pickles.
MOVED: dict[str, str] = {
    "agents.acting": "agents.policies.acting",
    "agents.critic": "agents.planners.critic",
    "agents.device_ppo": "agents.learning.device_ppo",
    "agents.dyna_policy": "agents.learning.dyna_policy",
    "agents.mcts": "agents.planners.mcts",
    "agents.networks": "agents.learning.networks",
    "agents.planner": "agents.planners.shooting",
    "agents.ppo_config": "agents.learning.config",
    "agents.rollout_planner": "agents.planners.rollouts",
    "agents.sb3": "agents.environments.sb3",
    "training.bench_collect": "training.benchmarks.collect",
    "training.bench_loader": "training.benchmarks.loader",
    "training.bench_play": "training.benchmarks.play",
    "training.bench_step": "training.benchmarks.step",
    "training.bench_store": "training.benchmarks.store",
    "training.bench_train": "training.benchmarks.train",
    "training.check_exactness": "training.benchmarks.exactness",
    "training.dataset": "training.data.dataset",
    "training.losses": "training.objective.diffusion_forcing",
    "training.rollouts": "training.recording.rollouts",
    "training.trials": "training.benchmarks.trials",
    "wm_gym.backtrack": "wm_gym.policies.backtrack",
    "wm_gym.memory_feature": "wm_gym.wrappers.features",
    "wm_gym.policy_loading": "wm_gym.policies.loading",
    "wm_gym.step_graph": "wm_gym.engine.graph",
    "wm_gym.step_memory": "wm_gym.engine.memory",
    "wm_gym.step_network": "wm_gym.engine.network",
    "wm_gym.envs.memory_maze_vector": "wm_gym.envs.memory_maze.vector",
    "wm_gym.nn.odometry": "wm_gym.odometry.visual",
}


class _MovedLoader(Loader):
    """Loads the module `new` in the place of the one that is asked for."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        """Lets the import system make an empty module, which `exec_module` replaces."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Puts the module of the new name where the import system looks for the result."""
        sys.modules[module.__name__] = importlib.import_module(self.new)

    def get_code(self, fullname: str) -> types.CodeType:
        """The code that ``python -m fullname`` runs."""
        spec = importlib.util.find_spec(self.new)
        assert spec is not None
        name = self.new if spec.submodule_search_locations is None else f"{self.new}.__main__"
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        return spec.loader.get_code(name)  # type: ignore[attr-defined]


class _MovedFinder(MetaPathFinder):
    """Finds modules by the names of `MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """The new module under its old name, None for every other name."""
        if fullname not in MOVED:
            return None
        new = MOVED[fullname]
        warnings.warn(
            f"{fullname} is now {new}; the old name goes with the next release.", DeprecationWarning, stacklevel=2
        )
        return ModuleSpec(fullname, _MovedLoader(new))


def accept_old_names() -> None:
    """Lets the import system find modules by the names of `MOVED`."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
