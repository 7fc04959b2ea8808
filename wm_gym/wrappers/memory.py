"""Wrappers that give an agent the memory of a world model, in the dream and in the real environment alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from wm_gym.checkpoint import load_checkpoint, resolve_device
from wm_gym.envs.dream.actions import to_model_actions
from wm_gym.envs.world_model import WorldModelEnv
from wm_gym.envs.world_model_vector import WorldModelVectorEnv
from wm_gym.world_model import ModelState, WorldModel
from wm_gym.wrappers.features import MemoryKind, Remembered


class FrameReader:
    """A world model that reads the frames of N real environments, a memory for each.

    Args:
        checkpoint: a packaged name, the path of a file, or a Hugging Face Hub id.
        num_rows: N.
        device: where the model runs.
        observation_space, action_space: those of one environment.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a damaged checkpoint, or one that was trained on other spaces.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        num_rows: int,
        device: str | torch.device,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
    ) -> None:
        loaded = load_checkpoint(checkpoint)
        if (observation_space, action_space) != (loaded.observation_space, loaded.action_space):
            raise ValueError(
                f"The checkpoint {checkpoint} reads observations {loaded.observation_space} and actions "
                f"{loaded.action_space}; this environment has {observation_space} and {action_space}."
            )
        self.model = WorldModel.from_weights(loaded.config, loaded.tensors, resolve_device(device), str(checkpoint))
        if self.model.config.needs_poses:
            raise ValueError(
                f"The checkpoint {checkpoint} needs poses; an agent's memory is made of frames and actions. If the "
                "poses are planar, `python -m training.odometry` adds what tells them from actions."
            )
        self._action_space = action_space
        self._num_rows = num_rows
        self.state: ModelState | None = None

    @torch.no_grad()
    def start(self, frames: Any, rows: np.ndarray | None = None) -> None:
        """Begins anew with the first frames of episodes.

        Args:
            frames: uint8 [N, H, W, C].
            rows: bool [N], the rows that begin; None: all.
        """
        first = self.model.prefill(
            self.model.initial_state(self._num_rows), self._frames(frames)[:, None], self._none()
        )
        if rows is None or self.state is None:
            self.state = first
        else:
            self.state = first.where(torch.from_numpy(rows).to(self.model.device), self.state)

    @torch.no_grad()
    def read(self, frames: Any, actions: Any) -> None:
        """Takes in the frames uint8 [N, H, W, C] that the actions [N, ...] led to."""
        assert self.state is not None, "start comes first"
        actions = actions.cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        led = to_model_actions(actions, self._action_space).to(self.model.device)
        self.state = self.model.advance(self.state, self._frames(frames), led)

    @property
    def memory(self) -> ModelState:
        """What is remembered now; the newest frame, which is the observation, is still pending in it."""
        assert self.state is not None, "start comes first"
        return self.state

    @property
    def ssm_states(self) -> tuple[Tensor, ...]:
        """SSM states of all layers, [N, K, h, d, s] each: of all frames but the newest, which is the observation."""
        return tuple(layer.ssm_state for layer in self.memory.layers)

    def _frames(self, frames: Any) -> Tensor:
        tensor = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
        return tensor.to(self.model.device)

    def _none(self) -> Tensor:
        """No actions, in the model's type."""
        config = self.model.config
        if config.action_kind == "discrete":
            return torch.zeros(self._num_rows, 0, dtype=torch.int64, device=self.model.device)
        return torch.zeros(self._num_rows, 0, config.action_size, device=self.model.device)


class MemoryObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Adds what a world model remembers to the image, so that a policy without memory of its own acts with a long one.

    Observation: {"image": the environment's, "memory": float32 [size]}, the `MemoryFeature` of all frames before the
    newest, which is the image; of kind "map" the memory is a `MapView`, float32 [V + 1, 21, 21]. In a dream it is taken
    from the memory of the dream itself. Around a real environment, a model of its own reads the frames, at the cost of
    about one step of a dream for each. The two agree: a dream whose frames are read as real ones has the same features
    (up to rounding).

    A dream begins with the memory of its context, a real episode with an empty one. To act in reality as in the dream,
    let dreams start from short contexts too, or give an agent its first steps to look around.

    Args:
        env: a dream, or a real environment with the spaces of the checkpoint.
        checkpoint: the model that reads a real environment; a dream has its own and takes none.
        size: numbers in the feature.
        seed: draws the feature's projections; it must be the same wherever a policy acts.
        device: where the model of a real environment runs.
        kind: "states", which any model has, or "map".

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: no checkpoint for a real environment, one for a dream, one of other spaces, or one without a map.
    """

    def __init__(
        self,
        env: gym.Env[np.ndarray, Any],
        checkpoint: str | Path | None = None,
        size: int = 256,
        seed: int = 0,
        device: str | torch.device = "cpu",
        kind: MemoryKind = "states",
    ) -> None:
        super().__init__(env)
        self._reader = _reader_for(env.unwrapped, checkpoint, 1, device, env.observation_space, env.action_space)
        self._source: Any = env.unwrapped if self._reader is None else self._reader
        model = self._source.model
        self._feature = Remembered(model.config, kind, size, seed, model.device)
        self.observation_space = self._feature.with_image(env.observation_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode; a real one with an empty memory."""
        obs, info = self.env.reset(seed=seed, options=options)
        if self._reader is not None:
            self._reader.start(obs[None])
        return self._observation(obs), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        """A step of the environment."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._reader is not None:
            self._reader.read(obs[None], [action])
        return self._observation(obs), reward, terminated, truncated, info

    def _observation(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": obs, "memory": self._feature(self._source.memory)[0].cpu().numpy()}


class MemoryVectorObservation(VectorWrapper[Any, Any, Any, Any, Any]):
    """`MemoryObservation` for many rows: one model reads all of them in a batch.

    The environment must have the autoreset mode DISABLED, so that the memory of an episode can be seen at its end; the
    wrapper resets rows that end in the same step (SAME_STEP), as Stable-Baselines3 expects.

    Args:
        env: a batch of dreams, or real environments (`gym.make_vec(ID, N, vectorization_mode="async",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED})`).
        checkpoint, size, seed, device, kind: as for `MemoryObservation`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: as for `MemoryObservation`, and for another autoreset mode.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        checkpoint: str | Path | None = None,
        size: int = 256,
        seed: int = 0,
        device: str | torch.device = "cpu",
        kind: MemoryKind = "states",
    ) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"The memory at the end of an episode is lost in autoreset mode {getattr(mode, 'value', mode)}: make "
                "the environment with autoreset_mode='Disabled'; this wrapper resets rows in the same step."
            )
        spaces = env.single_observation_space, env.single_action_space
        self._reader = _reader_for(env.unwrapped, checkpoint, env.num_envs, device, *spaces)
        self._source: Any = env.unwrapped if self._reader is None else self._reader
        model = self._source.model
        self._feature = Remembered(model.config, kind, size, seed, model.device)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = self._feature.with_image(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every row, or in those of options["reset_mask"], where the environment takes it."""
        rows = (options or {}).get("reset_mask")
        obs, info = self.env.reset(seed=seed, options=options)
        if self._reader is not None:
            self._reader.start(obs, rows.cpu().numpy() if isinstance(rows, Tensor) else rows)
        return {"image": obs, "memory": self._memory(obs)}, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A step in every row; rows that end begin anew, with their last observation in info["final_obs"]."""
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        if self._reader is not None:
            self._reader.read(obs, actions)
        observation = {"image": obs, "memory": self._memory(obs)}
        ends = terminated | truncated
        ended: np.ndarray = ends.cpu().numpy() if isinstance(ends, Tensor) else ends
        if ended.any():
            final = np.full(self.num_envs, None, object)
            for row in np.flatnonzero(ended).tolist():
                final[row] = {key: _copy(part[row]) for key, part in observation.items()}
            observation, reset_info = self.reset(options={"reset_mask": ended.copy()})
            final_info = _masked(info, ended)
            info = {**_merged(info, reset_info, ended), "final_info": final_info, "final_obs": final}
            info |= {"_final_info": ended.copy(), "_final_obs": ended.copy()}
        return observation, rewards, terminated, truncated, info

    def _memory(self, obs: Any) -> Any:
        memory = self._feature(self._source.memory)
        return memory.to(obs.device) if isinstance(obs, Tensor) else memory.cpu().numpy()


def _reader_for(
    base: Any,
    checkpoint: str | Path | None,
    num_rows: int,
    device: str | torch.device,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
) -> FrameReader | None:
    """What reads a real environment; None for a dream, which has its memory."""
    is_dream = isinstance(base, (WorldModelEnv, WorldModelVectorEnv))
    if is_dream and checkpoint is not None:
        raise ValueError(f"A dream is remembered by the model that dreams it: leave checkpoint={checkpoint!r} out.")
    if is_dream:
        return None
    if checkpoint is None:
        raise ValueError("A real environment is remembered by a model that reads its frames: give its checkpoint=.")
    return FrameReader(checkpoint, num_rows, device, observation_space, action_space)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value.copy()


def _masked(info: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """The entries of some rows of a batched info."""
    return {
        key: value & rows if key.startswith("_") else _masked(value, rows) if isinstance(value, dict) else value
        for key, value in info.items()
    }


def _merged(info: dict[str, Any], other: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """A batched info with the entries of `other` in some rows."""
    merged = _masked(info, ~rows)
    for key, value in other.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, dict):
            merged[key] = _merged(merged[key], value, rows)
        else:
            merged[key] = np.where(rows.reshape(-1, *[1] * (np.ndim(value) - 1)), value, merged[key])
    return merged
