"""A batch of real environments that speaks in tensors, so that PPO learns there as it does in dreams."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor


class TensorBatch(VectorWrapper):
    """Takes actions as tensors, and gives observations, rewards and flags as tensors on a device.

    A frame goes to the device once, when it is seen; an agent that keeps its rollouts there needs no other copy.
    Of info only the observations under "final_obs" become tensors; masks stay arrays, which the host asks for.

    Args:
        env: whose observations are arrays, or dictionaries of arrays.
        device: of the tensors.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], device: str) -> None:
        super().__init__(env)
        self._device = torch.device(device)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Observations [N, ...] as tensors, and info. Raises what the environment raises."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._tensors(obs), info

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Observations [N, ...], rewards float32 [N], two flags bool [N], and info, for actions [N, ...]."""
        obs, rewards, terminated, truncated, info = self.env.step(actions.cpu().numpy())
        if "final_obs" in info:
            finals = np.full(self.num_envs, None, object)
            for row in np.flatnonzero(info["_final_obs"]).tolist():
                finals[row] = self._tensors(info["final_obs"][row])
            info = {**info, "final_obs": finals}
        rewards = self._tensors(np.asarray(rewards, np.float32))
        return self._tensors(obs), rewards, self._tensors(terminated), self._tensors(truncated), info

    def _tensors(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._tensors(part) for key, part in value.items()}
        # Copies: what an environment gives it may write again, and a tensor of the CPU would share it.
        return torch.tensor(value, device=self._device)
