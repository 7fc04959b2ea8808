"""What an agent of `agents.ppo` thinks of dreamed moments, for planners: their worth, and what it would do there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.policies import CONFIG_FILE, load_ppo, run_memory
from wm_gym.memory_feature import MemoryFeature
from wm_gym.world_model import WorldModel


class HasLayers(Protocol):
    """A model's memory: `ModelState` or `StepMemory`, whose layers have an `ssm_state` [N, K, h, d, s] each."""

    @property
    def layers(self) -> Any: ...


class PpoCritic:
    """The value function and the policy that `agents.ppo` trained, on frames and memories of its own world model.

    Args:
        path: model file of a run.
        model: the world model; the agent is computed where it is.
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
        self._policy = load_ppo(Path(path), space, env.action_space, str(model.device)).policy
        self._policy.set_training_mode(False)

    @torch.no_grad()
    def __call__(self, frames: Tensor, memory: HasLayers) -> Tensor:
        """Values [N] of frames uint8 [N, H, W, C] and the memories that have them as their newest."""
        return self._policy.predict_values(self._observations(frames, memory))[:, 0]

    @torch.no_grad()
    def with_policy(self, frames: Tensor, memory: HasLayers) -> tuple[Tensor, Tensor]:
        """Values [N] as above, and the policy's probabilities [N, A] of discrete actions."""
        obs = self._observations(frames, memory)
        distribution = self._policy.get_distribution(obs).distribution
        return self._policy.predict_values(obs)[:, 0], distribution.probs

    def _observations(self, frames: Tensor, memory: HasLayers) -> Any:
        image = frames.movedim(-1, 1)  # as Stable-Baselines3 shows images
        if self._feature is None:
            return image
        return {"image": image, "memory": self._feature([layer.ssm_state for layer in memory.layers])}
