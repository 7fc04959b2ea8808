"""PPO whose rollouts stay on one device: dreamed frames never pass through the host's memory, real ones do once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

Observation = Any  # a tensor [N, ...], or a dictionary of such


class DeviceRollouts(RolloutBuffer):
    """Steps of N rows, T of each, as tensors on the policy's device; the arguments are those of `RolloutBuffer`.

    Images are kept as they come, [H, W, C], and shown as [C, H, W]: PyTorch's channels_last, without a copy.
    """

    def reset(self) -> None:
        """Forgets all steps. The buffers stay."""
        self.pos, self.full = 0, False
        if hasattr(self, "_observations"):
            return
        shape = self.buffer_size, self.n_envs
        self._observations = _map(lambda space: self._room(space), self.observation_space)
        self._actions = torch.zeros(*shape, self.action_dim, device=self.device)
        self._rewards, self._starts, self._values, self._log_probs = torch.zeros(4, *shape, device=self.device)
        self._advantages, self._returns = torch.zeros(2, *shape, device=self.device)

    @property
    def values(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Values [T, N], for SB3's log."""
        return self._values.cpu().numpy()

    @property
    def returns(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns [T, N], for SB3's log."""
        return self._returns.cpu().numpy()

    def add(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, obs: Observation, action: Tensor, reward: Tensor, episode_start: Tensor, value: Tensor, log_prob: Tensor
    ) -> None:
        """Takes in a step of all rows: observations as the policy sees them, everything else [N] or [N, A]."""
        _map(lambda room, part: room[self.pos].copy_(part), self._observations, obs)
        self._actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self._rewards[self.pos], self._starts[self.pos] = reward, episode_start
        self._values[self.pos], self._log_probs[self.pos] = value.flatten(), log_prob
        self.pos += 1
        self.full = self.pos == self.buffer_size

    @torch.no_grad()
    def compute_returns_and_advantage(self, last_values: Tensor, dones: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Generalized advantage estimates (Schulman et al. 2015) and the returns that they make of the values."""
        advantage = torch.zeros(self.n_envs, device=self.device)
        next_value, goes_on = last_values.flatten(), 1.0 - dones.float()
        for step in reversed(range(self.buffer_size)):
            error = self._rewards[step] + self.gamma * next_value * goes_on - self._values[step]
            advantage = error + self.gamma * self.gae_lambda * goes_on * advantage
            self._advantages[step] = advantage
            next_value, goes_on = self._values[step], 1.0 - self._starts[step]
        torch.add(self._advantages, self._values, out=self._returns)

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All steps once, in a random order, in minibatches."""
        assert self.full
        order = torch.randperm(self.buffer_size * self.n_envs, device=self.device)
        columns = self._values, self._log_probs, self._advantages, self._returns
        for rows in order.split(batch_size or len(order)):
            observations: Any = _map(lambda part, rows=rows: _take(part, rows), self._observations)
            actions = self._actions.flatten(0, 1)[rows]
            yield RolloutBufferSamples(observations, actions, *(column.flatten()[rows] for column in columns))

    def _room(self, space: gym.Space[Any]) -> Tensor:
        shape, dtype = space.shape or (), torch.from_numpy(np.empty(0, space.dtype)).dtype
        if len(shape) == 3:
            channels, height, width = shape
            room = torch.zeros(self.buffer_size, self.n_envs, height, width, channels, dtype=dtype, device=self.device)
            return room.movedim(-1, 2)
        return torch.zeros(self.buffer_size, self.n_envs, *shape, dtype=dtype, device=self.device)


class DevicePPO(PPO):
    """SB3's PPO over a batch that gives tensors: `agents.environments.sb3.Sb3VecEnv` around dreams with
    output="torch", or around real environments in an `agents.environments.tensor_batch.TensorBatch`.

    The same algorithm with the same files; only what happens in a rollout stays on the device. What it does there is
    tested against SB3's own.
    """

    def _setup_model(self) -> None:
        self.rollout_buffer_class = DeviceRollouts  # also where a file was saved by SB3's PPO
        super()._setup_model()

    def train(self) -> None:
        """Learns from the rollouts. On a GPU results are not reproducible to the last bit."""
        cudnn = torch.backends.cudnn
        settings = cudnn.deterministic, cudnn.benchmark
        # SB3 asks cuDNN for reproducible convolutions and forbids it to try which are fastest. Minibatches are of one
        # size, so that these are soon found.
        cudnn.deterministic, cudnn.benchmark = False, True
        try:
            super().train()
        finally:
            cudnn.deterministic, cudnn.benchmark = settings

    def _excluded_save_params(self) -> list[str]:
        # Tensors of a GPU could not be loaded without one; a run that goes on begins new episodes anyway.
        return [*super()._excluded_save_params(), "_last_obs", "_last_episode_starts", "_episode_sums"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Acts for `n_rollout_steps` in every row. Returns False if the callback ends training."""
        vector: Any = env.unwrapped.env  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(rollout_buffer, DeviceRollouts)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        obs, starts = self._begin()
        rewards = torch.zeros(0)
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                actions, values, log_probs = self.policy(obs)
            new_obs, rewards, terminated, truncated, info = vector.step(self._legal(actions))
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._count(rewards, info)
            rewards = self._bootstrapped(rewards, terminated, truncated, info)
            rollout_buffer.add(obs, actions, rewards, starts, values, log_probs)
            obs, starts = self._as_policy_sees(new_obs), (terminated | truncated).float()
        self._last_obs, self._last_episode_starts = obs, starts  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            last_values = self.policy.predict_values(obs)
        rollout_buffer.compute_returns_and_advantage(last_values, starts)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _begin(self) -> tuple[Observation, Tensor]:
        """Where the last rollout ended, or the first observations, which SB3 asked for as arrays."""
        starts = torch.as_tensor(self._last_episode_starts, device=self.device).float()
        if not hasattr(self, "_episode_sums") or self._episode_sums.shape[1] != self.n_envs:
            self._episode_sums = torch.zeros(2, self.n_envs, device=self.device)
        return _map(lambda part: torch.as_tensor(part, device=self.device), self._last_obs), starts

    def _as_policy_sees(self, obs: Observation) -> Observation:
        """Images [N, H, W, C] as [N, C, H, W], as SB3 shows them to policies."""

        def turned(part: Tensor, space: gym.Space[Any]) -> Tensor:
            return part if part.shape[1:] == space.shape else part.movedim(-1, 1)

        spaces = self.observation_space
        return _map(turned, obs, spaces.spaces if isinstance(spaces, gym.spaces.Dict) else spaces)

    def _legal(self, actions: Tensor) -> Tensor:
        if not isinstance(self.action_space, gym.spaces.Box):
            return actions
        if self.policy.squash_output:
            raise ValueError("A policy that squashes its actions is not known here.")
        low, high = (torch.from_numpy(bound).to(actions) for bound in (self.action_space.low, self.action_space.high))
        return actions.clamp(low, high)

    @torch.no_grad()
    def _bootstrapped(self, rewards: Tensor, terminated: Tensor, truncated: Tensor, info: dict[str, Any]) -> Tensor:
        """Adds the value of what would have come where an episode was cut and had not terminated."""
        rewards = rewards.to(self.device, torch.float32)
        if "_final_obs" not in info:  # which the host knows without asking the device
            return rewards
        rows = np.flatnonzero(info["_final_obs"]).tolist()
        finals = [info["final_obs"][row] for row in rows]
        obs = _map(lambda *parts: torch.stack(parts), *finals)
        values = self.policy.predict_values(self._as_policy_sees(obs)).flatten()
        index = torch.tensor(rows, device=self.device)
        cut = (truncated & ~terminated)[index].to(values)
        return rewards.index_add(0, index, self.gamma * values * cut)

    def _count(self, rewards: Tensor, info: dict[str, Any]) -> None:
        """Returns and lengths of episodes that ended, for SB3's log."""
        self._episode_sums += torch.stack([rewards, torch.ones_like(rewards)])
        if "_final_obs" not in info:
            return
        rows = np.flatnonzero(info["_final_obs"])
        index = torch.from_numpy(rows).to(self.device)
        assert self.ep_info_buffer is not None
        elapsed = round(time.time() - self.start_time / 1e9, 6)
        for total, length in self._episode_sums[:, index].T.tolist():
            self.ep_info_buffer.append({"r": total, "l": int(length), "t": elapsed})
        self._episode_sums[:, index] = 0


def _take(part: Tensor, rows: Tensor) -> Tensor:
    """Steps of a room [T, N, ...]; images are gathered in the order in which they lie in memory."""
    if part.ndim != 5:
        return part.flatten(0, 1)[rows]
    return part.movedim(2, -1).flatten(0, 1).index_select(0, rows).movedim(-1, 1)


def _map(function: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """`function` of an observation, or of each part of a dictionary (of spaces or observations)."""
    if isinstance(first, gym.spaces.Dict):
        first = first.spaces
    if isinstance(first, dict):
        return {key: function(first[key], *(one[key] for one in rest)) for key in first}
    return function(first, *rest)
