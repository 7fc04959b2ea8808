"""World models that agents plan in: loading one, reading what really happens, and dreaming on from there."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from wm_gym.checkpoint import load_checkpoint, resolve_device
from wm_gym.engine.graph import StepGraph, StepOutput
from wm_gym.engine.memory import StepMemory
from wm_gym.world_model import ModelState, WorldModel


class RealMemory:
    """What a model remembers of the real episode so far."""

    def __init__(self, model: WorldModel) -> None:
        self._model = model
        self.state: ModelState | None = None

    def forget(self) -> None:
        """Begins a new episode."""
        self.state = None

    @torch.no_grad()
    def read(self, obs: Any, action: Tensor | None) -> ModelState:
        """Takes in a frame uint8 [H, W, C] and the action [1, ...] that led to it, None for the first frame."""
        model = self._model
        frame = torch.from_numpy(np.ascontiguousarray(obs))[None].to(model.device)
        if self.state is None or action is None:
            self.state = model.prefill(model.initial_state(1), frame[:, None], self._no_actions())
        else:
            self.state = model.advance(self.state, frame, action)
        return self.state

    def _no_actions(self) -> Tensor:
        config, device = self._model.config, self._model.device
        if config.action_kind == "discrete":
            return torch.zeros(1, 0, dtype=torch.int64, device=device)
        return torch.zeros(1, 0, config.action_size, device=device)


class Forks:
    """N futures of one moment, dreamed together; on a GPU a step is one CUDA graph.

    Args:
        model: frozen weights.
        num_rows: N.
        num_denoising_steps: network passes per frame.
    """

    def __init__(self, model: WorldModel, num_rows: int, num_denoising_steps: int = 1) -> None:
        self._graph = StepGraph(model, num_rows, num_denoising_steps)
        memory = self.memory = self._graph.memory
        self._origin = StepMemory(model.config, 1, model.device, memory.dtype, memory.state_dtype)
        self._rows = torch.arange(num_rows, device=model.device)

    def start(self, state: ModelState, keys: Tensor) -> None:
        """Every row goes on from a memory of one row; `keys`, int64 [N], decide the noise of each."""
        self._origin.load(state)
        self._graph.copy_rows(self._rows, self._origin, torch.zeros_like(self._rows))
        self._graph.set_noise(keys)

    def step(self, actions: Tensor) -> StepOutput:
        """One frame in every row, for actions [N] or [N, A]. The next step overwrites it; so does `memory` change."""
        return self._graph.step(actions)


def load_model_for(env: gym.Env[Any, Any], checkpoint: str, device: str) -> WorldModel:
    """The model of a checkpoint, for an environment of its spaces; "auto" takes the GPU if there is one.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it has other spaces, needs poses that nobody tells it, or the device is not there.
    """
    model, spaces = _load_model(checkpoint, str(resolve_device(device)))
    if spaces != (env.observation_space, env.action_space):
        raise ValueError(
            f"The checkpoint {checkpoint} dreams observations {spaces[0]} and actions {spaces[1]}; this environment "
            f"has {env.observation_space} and {env.action_space}."
        )
    if model.config.needs_poses:
        raise ValueError(f"The checkpoint {checkpoint} needs poses; a planner reads frames and actions only.")
    return model


@lru_cache(maxsize=1)
def _load_model(checkpoint: str, device: str) -> tuple[WorldModel, tuple[Any, Any]]:
    loaded = load_checkpoint(checkpoint)
    model = WorldModel.from_weights(loaded.config, loaded.tensors, resolve_device(device), checkpoint)
    return model, (loaded.observation_space, loaded.action_space)
