"""What an agent of `agents.ppo` thinks a dreamed moment is worth, for planners that look no further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.policies import CONFIG_FILE, load_ppo, run_memory
from wm_gym.memory_feature import MemoryFeature
from wm_gym.world_model import ModelState, WorldModel


class PpoCritic:
    """The value function of a model that `agents.ppo` trained, on frames and memories of its own world model.

    Args:
        path: model file of a run.
        model: the world model.
        env: a plain environment, for its spaces.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was trained on other spaces, or has a memory of its own (--recurrent), which dreams do not tell.
    """

    def __init__(self, path: str | Path, model: WorldModel, env: gym.Env[Any, Any]) -> None:
        run = Path(path).parent.parent
        if not (run / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"A critic is a model file of a run of agents.ppo, RUN/seed_0/best.zip, got {path}."
            )
        if json.loads((run / CONFIG_FILE).read_text())["recurrent"]:
            raise ValueError(f"The critic {path} is recurrent: its memory cannot be told from a dream's.")
        memory, space = run_memory(run), env.observation_space
        self._feature = None
        if memory is not None:
            self._feature = MemoryFeature(model.config, memory.size, memory.seed, model.device)
            vector = gym.spaces.Box(-np.inf, np.inf, (memory.size,), np.float32)
            space = gym.spaces.Dict({"image": space, "memory": vector})
        self._policy = load_ppo(Path(path), space, env.action_space).policy

    @torch.no_grad()
    def __call__(self, frames: Tensor, state: ModelState) -> Tensor:
        """Values [N] of frames uint8 [N, H, W, C] and the memories that have them as their newest."""
        obs: Any = frames.cpu().numpy()
        if self._feature is not None:
            memory = self._feature([layer.ssm_state for layer in state.layers])
            obs = {"image": obs, "memory": memory.cpu().numpy()}
        values = self._policy.predict_values(self._policy.obs_to_tensor(obs)[0])
        return values[:, 0]
