"""Many dreams in one batch, as a Gymnasium vector environment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_gym.contexts import Context, make_context
from wm_gym.engine.memory import StepMemory
from wm_gym.envs.dream.actions import DeviceActionCheck, check_actions
from wm_gym.envs.dream.dreams import Dreams, DreamState, DreamStep
from wm_gym.envs.dream.settings import DreamSettings
from wm_gym.envs.world_model import check_options
from wm_gym.world_model import WorldModel

Seeds = int | Sequence[int | None] | None


@dataclass(frozen=True)
class VectorEpisodeState:
    """A fork of all episodes of a vector environment, from `WorldModelVectorEnv.get_state`."""

    dream: DreamState
    np_randoms: tuple[Mapping[str, Any], ...]


class WorldModelVectorEnv(VectorEnv[Any, Any, Any]):
    """N dreams that one network pass moves on together; row i is the episode of a `WorldModelEnv` with row i's seed.

    A row's episode does not depend on the other rows. Spaces, contexts, info and the other arguments are those of
    `WorldModelEnv`; info entries are arrays [N] with a mask under the same name with a leading underscore.

    `reset(seed=s)` gives row i the seed s + i, `reset(seed=[...])` one seed (or None) each. Options of `reset`:
        context: (frames [T, H, W, C], actions [T - 1]) for all rows, or with a leading axis N for one each.
        reset_mask: bool [N], the rows to reset; the others go on.

    Args:
        num_envs: N.
        output: "numpy" arrays, or "torch" tensors on `device`, for observations, rewards and the two flags. They are
            the caller's: no later step writes them.
        autoreset_mode: what happens to rows that ended. NEXT_STEP (default): the next step resets them, ignoring its
            action, with reward 0. SAME_STEP: they are reset at once, the last observation is info["final_obs"].
            DISABLED: they must be reset through `reset_mask` before the next step.

    Raises:
        FileNotFoundError, ValueError: as `WorldModelEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        checkpoint: str | Path = "memory-maze",
        contexts: str | Path = "memory-maze",
        context_frames: int | Sequence[int] = 100,
        starts_per_clip: int = 4,
        device: str | torch.device = "cpu",
        horizon: int = 1000,
        num_denoising_steps: int = 1,
        state_dtype: Literal["float32", "bfloat16"] = "float32",
        refresh_steps: int = 0,
        end_at_reward: bool = False,
        reward_threshold: float | None = None,
        max_distance: float | None = None,
        feedback_interval: int | None = None,
        write_once: float | None = None,
        output: Literal["numpy", "torch"] = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        if output not in ("numpy", "torch"):
            raise ValueError(f"output is 'numpy' or 'torch', got {output!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode of a vector environment is 'rgb_array' or None, got {render_mode!r}.")
        settings = DreamSettings(
            checkpoint,
            contexts,
            context_frames,
            starts_per_clip,
            device,
            horizon,
            num_denoising_steps,
            state_dtype,
            refresh_steps,
            end_at_reward,
            reward_threshold,
            max_distance,
            feedback_interval,
            write_once,
        )
        self._dreams = Dreams(num_envs, settings)
        self._output = output
        self._mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 4, "autoreset_mode": self._mode}
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.single_observation_space = self._dreams.observation_space
        self.single_action_space = self._dreams.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._check_on_device = DeviceActionCheck(num_envs, self.single_action_space, self._dreams.device)
        self._randoms: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._started = False

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One generator per row."""
        return tuple(self._random(row) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One seed per row."""
        return tuple(self._seeds)

    @property
    def model(self) -> WorldModel:
        """The model that dreams."""
        return self._dreams.model

    @property
    def ssm_states(self) -> tuple[torch.Tensor, ...]:
        """The long memory as it is now: SSM states of all layers, [B, K, h, d, s] each. Read them before the next step.

        Raises ResetNeeded before the first reset.
        """
        return self._dreams.ssm_states

    @property
    def memory(self) -> StepMemory:
        """All that is remembered now, of B rows: states, and the map of a model that has one. Read it before the next
        step, and do not write it. Raises ResetNeeded before the first reset."""
        return self._dreams.memory

    @property
    def poses(self) -> np.ndarray | None:
        """Where a model with odometry takes itself to be, float32 [N, 4]; None of other models.

        (x, y, cos heading, sin heading), seen from the first frame of each row's context, or after a refresh from the
        first one that it was made from.
        """
        return self._dreams.poses

    @property
    def likely_rewards(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the newest step: the likeliest reward other than 0, [N], and how probable the head takes any, [N].

        On the model's device; whatever `reward_threshold` is. Raises ResetNeeded before the first step.
        """
        return self._dreams.likely_rewards

    @property
    def state_bytes_per_env(self) -> int:
        """Bytes that the memory of one dream takes on the device, from its first step to its last."""
        return self._dreams.state_bytes_per_row

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Starts an episode in every row, or in those of `reset_mask`; see the class.

        Raises:
            ResetNeeded: after `close`, or if the first reset leaves rows out.
            TypeError: a context or mask of the wrong type.
            ValueError: a context, mask or list of seeds that does not fit, or unknown options.
        """
        if self.closed:
            raise gym.error.ResetNeeded("This environment was closed: make a new one.")
        options = check_options(options, {"context", "reset_mask"})
        rows = self._rows(options.get("reset_mask"))
        if len(rows) < self.num_envs and not self._started:
            raise gym.error.ResetNeeded("The first reset must start all rows: leave reset_mask out.")
        contexts = self._row_contexts(options.get("context"))
        for row, row_seed in enumerate(self._row_seeds(seed)):
            if row_seed is not None and row in rows:
                self._randoms[row], self._seeds[row] = seeding.np_random(row_seed)
        self._start(rows, contexts)
        self._started = True
        mask = np.zeros(self.num_envs, np.bool_)
        mask[rows] = True
        return self._convert(self._dreams.frames), self._info(mask)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Imagines one frame in every row.

        Args:
            actions: array or tensor [N, ...] from `action_space`.

        Raises:
            ResetNeeded: before the first reset, after `close`, or if a row ended and the autoreset mode is DISABLED.
            ValueError: an action outside the action space.
        """
        if self.closed or not self._started:
            raise gym.error.ResetNeeded("There are no running episodes: call reset before step.")
        ended = self._dreams.needs_reset.copy()
        if self._mode is AutoresetMode.DISABLED and ended.any():
            raise gym.error.ResetNeeded(
                f"The episodes of rows {np.flatnonzero(ended).tolist()} ended: call reset with a reset_mask."
            )
        step = self._step_dreams(actions)
        rewards = self._convert(step.rewards)
        terminated, truncated = step.terminated & ~ended, step.truncated & ~ended
        final: dict[str, Any] = {}
        if self._mode is AutoresetMode.SAME_STEP:
            ended = terminated | truncated
            final = self._final(ended, step.frames)
        elif ended.any():
            rewards[self._convert_flags(ended)] = 0
        if ended.any():
            self._start(np.flatnonzero(ended).tolist(), [None] * self.num_envs)
        flags = self._convert_flags(terminated), self._convert_flags(truncated)
        return self._convert(self._dreams.frames), rewards, *flags, {**self._info(), **final}

    def render(self) -> tuple[np.ndarray, ...] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The newest frames, N times uint8 [H, W, C], in mode "rgb_array", else None."""
        if self.render_mode is None:
            return None
        if not self._started:
            raise gym.error.ResetNeeded("There is nothing to render yet: call reset first.")
        return tuple(self._dreams.frames.cpu().numpy().copy())

    def get_state(self) -> VectorEpisodeState:
        """A fork of all episodes that `set_state` returns to. Raises ResetNeeded before the first reset."""
        states = tuple(copy.deepcopy(random.bit_generator.state) for random in self.np_random)
        return VectorEpisodeState(self._dreams.get_state(), states)

    def set_state(self, state: VectorEpisodeState) -> None:
        """Goes on from `state` exactly as the episodes did. Raises TypeError or ValueError for a foreign state."""
        if not isinstance(state, VectorEpisodeState):
            raise TypeError(f"Expected a VectorEpisodeState from get_state, got {type(state).__name__}.")
        self._dreams.set_state(state.dream)
        for random, saved in zip(self.np_random, state.np_randoms, strict=True):
            random.bit_generator.state = copy.deepcopy(saved)
        self._started = True

    def _random(self, row: int) -> np.random.Generator:
        random = self._randoms[row]
        if random is None:
            random, self._seeds[row] = seeding.np_random()
            self._randoms[row] = random
        return random

    def _start(self, rows: Sequence[int], contexts: Sequence[Context | None]) -> None:
        self._dreams.start(rows, [self._random(row) for row in rows], [contexts[row] for row in rows])

    def _rows(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        mask = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask must be an array of bool, got {mask!r}.")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"reset_mask must have shape [{self.num_envs}] and one True at least, got {mask!r}.")
        return np.flatnonzero(mask).tolist()

    def _row_seeds(self, seed: Seeds) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"A list of seeds needs one for each of {self.num_envs} rows, got {len(seed)}.")
        return seed

    def _row_contexts(self, context: Any) -> Sequence[Context | None]:
        spaces = self.single_observation_space, self.single_action_space
        if context is None:
            return [None] * self.num_envs
        per_row = isinstance(context, (tuple, list)) and len(context) == 2 and np.ndim(context[0]) == 5
        if not per_row:
            return [make_context(context, *spaces)] * self.num_envs
        if any(len(part) != self.num_envs for part in context):
            raise ValueError(f"A context for each row needs a leading axis of {self.num_envs} in frames and actions.")
        return [make_context(pair, *spaces) for pair in zip(*context, strict=True)]

    def _step_dreams(self, actions: Any) -> DreamStep:
        if isinstance(actions, torch.Tensor) and actions.device == self._dreams.device and actions.is_cuda:
            return self._dreams.step(*self._check_on_device(actions))
        return self._dreams.step(check_actions(actions, self.num_envs, self.single_action_space))

    def _info(self, mask: np.ndarray | None = None) -> dict[str, Any]:
        """Counters of the rows in `mask`, or of all."""
        values = {"context_frames": self._dreams.num_context_frames, "imagined_steps": self._dreams.num_steps}
        info: dict[str, Any] = {}
        for name, value in values.items():
            info[name] = value.copy() if mask is None else np.where(mask, value, 0)
            info[f"_{name}"] = np.ones(self.num_envs, np.bool_) if mask is None else mask.copy()
        return info

    def _final(self, ended: np.ndarray, frames: torch.Tensor) -> dict[str, Any]:
        """What SAME_STEP adds to info: the last observation and info of the rows that ended."""
        if not ended.any():
            return {}
        rows = np.flatnonzero(ended)
        final_obs = np.full(self.num_envs, None, object)
        # One copy for all rows: all of a batch may end together.
        finals = self._convert(frames[torch.from_numpy(rows).to(frames.device, non_blocking=True)])
        for row, frame in zip(rows.tolist(), finals, strict=True):
            final_obs[row] = frame
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": self._info(ended),
            "_final_info": ended.copy(),
        }

    def _convert(self, tensor: torch.Tensor) -> Any:
        """A copy as the caller wants it."""
        if self._output == "torch":
            return tensor.clone()
        return tensor.to("cpu", copy=True).numpy()

    def _convert_flags(self, flags: np.ndarray) -> Any:
        if self._output == "torch":
            return torch.from_numpy(flags).to(self._dreams.device, non_blocking=True)
        return flags
