"""What an agent of `agents.ppo` thinks of dreamed moments, for planners: their worth, and what it would do there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from agents.policies.loading import CONFIG_FILE, load_ppo, run_memory
from wm_gym.engine.memory import StepMemory
from wm_gym.world_model import ModelState, WorldModel

Memory = ModelState | StepMemory


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
            self._feature = memory.remembered(model)
            space = self._feature.with_image(space)
        self._policy = load_ppo(Path(path), space, env.action_space, str(model.device)).policy
        self._policy.set_training_mode(False)

    @torch.no_grad()
    def __call__(self, frames: Tensor, memory: Memory) -> Tensor:
        """Values [N] of frames uint8 [N, H, W, C] and the memories that have them as their newest."""
        return self._policy.predict_values(self._observations(frames, memory))[:, 0]

    @torch.no_grad()
    def with_policy(self, frames: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Values [N] as above, and the policy's probabilities [N, A] of discrete actions."""
        # One pass for both, and no checks of distributions, for which the host would wait for the device.
        policy = self._policy
        features = policy.extract_features(self._observations(frames, memory), policy.features_extractor)
        for_actions, for_values = policy.mlp_extractor(features)
        return policy.value_net(for_values)[:, 0], policy.action_net(for_actions).softmax(-1)

    def _observations(self, frames: Tensor, memory: Memory) -> Any:
        image = frames.movedim(-1, 1)  # as Stable-Baselines3 shows images
        if self._feature is None:
            return image
        return {"image": image, "memory": self._feature(memory)}
