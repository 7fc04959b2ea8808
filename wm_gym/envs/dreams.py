"""Dreams in a batch: the part that the single and the vector environment share, free of Gymnasium's API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_gym.checkpoint import load_checkpoint, resolve_device
from wm_gym.codec import model_to_frames
from wm_gym.contexts import Clips, Context, load_clips
from wm_gym.world_model import ModelState, WorldModel

TERMINATION_THRESHOLD = 0.5


@dataclass(frozen=True)
class DreamStep:
    """What one step gives, per row. Tensors are on the model's device."""

    frames: torch.Tensor  # uint8 [B, H, W, C]
    rewards: torch.Tensor  # float32 [B]
    terminated: np.ndarray  # bool [B]
    truncated: np.ndarray  # bool [B]


@dataclass(frozen=True)
class DreamState:
    """All that a batch of dreams needs to go on: see `get_state` of the environments."""

    model_state: ModelState
    generator_states: tuple[torch.Tensor, ...]
    frames: torch.Tensor  # uint8 [B, H, W, C], the newest ones
    num_context_frames: np.ndarray  # int64 [B]
    num_steps: np.ndarray  # int64 [B]
    needs_reset: np.ndarray  # bool [B]


class Dreams:
    """A model, and for each of B rows a memory, a generator and counters.

    Args:
        num_rows: B.
        checkpoint: a packaged name, the path of a file, or a Hugging Face Hub id.
        contexts: name or path of the clips from which dreams start.
        context_frames: how many frames of a clip are read in.
        device: where the model runs.
        horizon: steps before truncation.
        num_denoising_steps: network passes for a frame.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a damaged checkpoint, a device that is not there, a number below 1, or a model that needs poses.
    """

    def __init__(
        self,
        num_rows: int,
        checkpoint: str | Path,
        contexts: str | Path,
        context_frames: int,
        device: str | torch.device,
        horizon: int,
        num_denoising_steps: int,
    ) -> None:
        counts = {
            "num_envs": num_rows,
            "context_frames": context_frames,
            "horizon": horizon,
            "num_denoising_steps": num_denoising_steps,
        }
        for name, value in counts.items():
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}.")
        device = resolve_device(device)
        loaded = load_checkpoint(checkpoint)
        self.observation_space = loaded.observation_space
        self.action_space = loaded.action_space
        self.model = WorldModel.from_weights(loaded.config, loaded.tensors, device, name=str(checkpoint))
        if self.model.config.pose_size > 0:
            raise ValueError(f"The checkpoint {checkpoint} needs poses; an environment can only dream from actions.")
        self._contexts = contexts
        self._context_frames = context_frames
        self._horizon = horizon
        self._num_denoising_steps = num_denoising_steps
        self._clip_states: dict[int, ModelState] = {}
        self._state: ModelState | None = None
        self._generators = [torch.Generator(self.model.device) for _ in range(num_rows)]
        self.frames = torch.zeros((num_rows, *self._frame_shape), dtype=torch.uint8, device=self.model.device)
        self.num_context_frames = np.zeros(num_rows, np.int64)
        self.num_steps = np.zeros(num_rows, np.int64)
        self.needs_reset = np.ones(num_rows, np.bool_)

    @property
    def num_rows(self) -> int:
        return len(self._generators)

    @property
    def ssm_states(self) -> tuple[torch.Tensor, ...]:
        """SSM states of all layers, [B, K, h, d, s] each. Raises ResetNeeded before the first reset."""
        if self._state is None:
            raise gym.error.ResetNeeded("There is no memory to look at yet: call reset first.")
        return tuple(layer.ssm_state for layer in self._state.layers)

    def start(
        self, rows: Sequence[int], randoms: Sequence[np.random.Generator], contexts: Sequence[Context | None]
    ) -> None:
        """Starts the dreams of `rows` anew, each from its context, or from a clip that its random generator draws."""
        prepared: dict[int, ModelState] = {}
        states = []
        for row, random, context in zip(rows, randoms, contexts, strict=True):
            self._generators[row].manual_seed(int(random.integers(2**63)))
            if context is None:
                clip = int(random.integers(len(self._clips)))
                context = self._clips.context(clip, self._context_frames)
                states.append(self._clip_state(clip))
            else:
                if id(context) not in prepared:
                    prepared[id(context)] = self._read(context)
                states.append(prepared[id(context)])
            self.frames[row] = torch.from_numpy(context.frames[-1])
            self.num_context_frames[row] = context.num_frames
        self._put(list(rows), states)
        self.num_steps[list(rows)] = 0
        self.needs_reset[list(rows)] = False

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> DreamStep:
        """One imagined frame in every row. `actions` comes from `check_actions`."""
        assert self._state is not None
        prediction, self._state = self.model.step(
            self._state, actions.to(self.model.device), self._generators, self._num_denoising_steps
        )
        self.frames = model_to_frames(prediction.frame)
        self.num_steps += 1
        terminated = (prediction.termination > TERMINATION_THRESHOLD).cpu().numpy()
        truncated = self.num_steps >= self._horizon
        self.needs_reset = terminated | truncated
        return DreamStep(self.frames, prediction.reward, terminated, truncated)

    def get_state(self) -> DreamState:
        """A copy that later steps do not touch. Raises ResetNeeded before the first reset."""
        if self._state is None:
            raise gym.error.ResetNeeded("There is no episode to copy yet: call reset first.")
        return DreamState(
            self._state.clone(),
            tuple(generator.get_state() for generator in self._generators),
            self.frames.clone(),
            self.num_context_frames.copy(),
            self.num_steps.copy(),
            self.needs_reset.copy(),
        )

    def set_state(self, state: DreamState) -> None:
        """Goes on from a state of `get_state`, which stays usable. Raises ValueError if it is of another shape."""
        if state.frames.shape != self.frames.shape:
            raise ValueError(
                f"The state holds frames of shape {list(state.frames.shape)}, these dreams {list(self.frames.shape)}."
            )
        self._state = state.model_state.to(self.model.device).clone()
        for generator, saved in zip(self._generators, state.generator_states, strict=True):
            generator.set_state(saved)
        self.frames = state.frames.to(self.model.device, copy=True)
        self.num_context_frames = state.num_context_frames.copy()
        self.num_steps = state.num_steps.copy()
        self.needs_reset = state.needs_reset.copy()

    @property
    def _frame_shape(self) -> tuple[int, ...]:
        config = self.model.config
        return config.frame_height, config.frame_width, config.frame_channels

    @cached_property
    def _clips(self) -> Clips:
        clips = load_clips(self._contexts)
        if clips.frames.shape[2:] != self._frame_shape:
            raise ValueError(
                f"The clips {str(self._contexts)!r} have frames of shape {list(clips.frames.shape[2:])}, the model "
                f"dreams {list(self._frame_shape)}: pass reset(options={{'context': (frames, actions)}}) or contexts=."
            )
        return clips

    def _clip_state(self, clip: int) -> ModelState:
        """The memory after a clip. It is kept, for reading a context in costs as much as many steps."""
        if clip not in self._clip_states:
            self._clip_states[clip] = self._read(self._clips.context(clip, self._context_frames))
        return self._clip_states[clip]

    @torch.no_grad()
    def _read(self, context: Context) -> ModelState:
        frames = torch.from_numpy(np.ascontiguousarray(context.frames))[None].to(self.model.device)
        actions = to_model_actions(context.actions, self.action_space)[None].to(self.model.device)
        return self.model.prefill(self.model.initial_state(1), frames, actions)

    def _put(self, rows: list[int], states: list[ModelState]) -> None:
        """Writes memories of one row each into the given rows."""
        parts = [state.to_tensors() for state in states]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if len(rows) < self.num_rows:
            assert self._state is not None
            index = torch.tensor(rows, device=self.model.device)
            kept = self._state.to_tensors()
            tensors = {name: kept[name].index_copy(0, index, tensor) for name, tensor in tensors.items()}
        self._state = ModelState.from_tensors(tensors)


def check_actions(actions: Any, num_rows: int, space: gym.Space[Any]) -> torch.Tensor:
    """Actions of all rows as the model takes them. Raises ValueError if one of them is not in `space`."""
    values = actions.detach().cpu().numpy() if isinstance(actions, torch.Tensor) else np.asarray(actions)
    if isinstance(space, gym.spaces.Discrete):
        kinds, low, high = "iu", space.start, space.start + space.n - 1
    else:
        assert isinstance(space, gym.spaces.Box)
        kinds, low, high = "iuf", space.low, space.high
    fits = values.shape == (num_rows, *(space.shape or ())) and values.dtype.kind in kinds
    if not fits or not ((values >= low) & (values <= high)).all():
        raise ValueError(f"Expected {num_rows} action(s) from {space}, got {actions!r}.")
    return to_model_actions(values, space)


def to_model_actions(actions: np.ndarray, space: gym.Space[Any]) -> torch.Tensor:
    """Valid actions as int64 counted from 0, or as float32."""
    if isinstance(space, gym.spaces.Discrete):
        return torch.from_numpy(actions.astype(np.int64) - int(space.start))
    return torch.from_numpy(actions.astype(np.float32))
