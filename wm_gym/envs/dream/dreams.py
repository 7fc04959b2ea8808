"""Dreams in a batch: the part that the single and the vector environment share, free of Gymnasium's API."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import gymnasium as gym
import numpy as np
import torch

from wm_gym.checkpoint import load_checkpoint, resolve_device
from wm_gym.codec import model_to_frames
from wm_gym.contexts import Clips, Context, load_clips
from wm_gym.engine.graph import StepGraph, StepOutput
from wm_gym.engine.memory import StepMemory
from wm_gym.envs.dream.context_pool import ContextPool, read_contexts
from wm_gym.envs.dream.refresh import RecentFrames
from wm_gym.envs.dream.rewards import likely_rewards, rewards_above
from wm_gym.envs.dream.seen_places import SeenPlaces
from wm_gym.envs.dream.settings import STATE_DTYPES, DreamSettings, check_count
from wm_gym.world_model import ModelState, WorldModel

TERMINATION_THRESHOLD = 0.5


@dataclass(frozen=True)
class DreamStep:
    """What one step gives, per row. The next step may overwrite the tensors, which are on the model's device."""

    frames: torch.Tensor  # uint8 [B, H, W, C]
    rewards: torch.Tensor  # float32 [B]
    terminated: np.ndarray  # bool [B]
    truncated: np.ndarray  # bool [B]


@dataclass(frozen=True)
class DreamState:
    """All that a batch of dreams needs to go on: see `get_state` of the environments."""

    model_state: ModelState
    noise_keys: torch.Tensor  # int64 [B], which decide all noise of an episode
    noise_counters: torch.Tensor  # int64 [B], imagined frames of the episode
    frames: torch.Tensor  # uint8 [B, H, W, C], the newest ones
    num_context_frames: np.ndarray  # int64 [B]
    num_steps: np.ndarray  # int64 [B]
    needs_reset: np.ndarray  # bool [B]
    recent: tuple[torch.Tensor, torch.Tensor] | None  # of `RecentFrames`, where memories are refreshed
    seen_places: torch.Tensor | None  # [B, T, 2], of `SeenPlaces`, where dreams must stay near them


class Dreams:
    """A model, and for each of B rows a memory, noise and counters.

    Args:
        num_rows: B.
        settings: the rest.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a damaged checkpoint, a device that is not there, a number out of range, a model that needs poses,
            or one that does not tell them where max_distance needs them.
    """

    def __init__(self, num_rows: int, settings: DreamSettings) -> None:
        check_count("num_envs", num_rows)
        settings.check()
        device = resolve_device(settings.device)
        loaded = load_checkpoint(settings.checkpoint)
        self.num_rows = num_rows
        self.observation_space = loaded.observation_space
        self.action_space = loaded.action_space
        config = dict(loaded.config)
        chosen = {"feedback_interval": settings.feedback_interval, "write_once": settings.write_once}
        config |= {name: value for name, value in chosen.items() if value is not None}
        self.model = WorldModel.from_weights(config, loaded.tensors, device, name=str(settings.checkpoint))
        if self.model.config.needs_poses:
            raise ValueError(
                f"The checkpoint {settings.checkpoint} needs poses; an environment can only dream from actions. If the "
                "poses are planar, `python -m training.odometry` adds what tells them from actions."
            )
        if settings.max_distance is not None and not self.model.config.has_odometry:
            raise ValueError(
                f"max_distance {settings.max_distance} needs a model that tells where its dreams are; the checkpoint "
                f"{settings.checkpoint} has no odometry. Leave max_distance out, or give a checkpoint with odometry."
            )
        self._settings = settings
        self._graph = StepGraph(
            self.model, num_rows, int(settings.num_denoising_steps), STATE_DTYPES[settings.state_dtype]
        )
        if device.type == "cuda" and not self._graph.is_captured:
            warnings.warn(
                "Steps run operation by operation, many times slower than as one graph: Triton is not installed (pip "
                "install triton), or the model's head_dim or state_dim is not a power of two from 16 on.",
                stacklevel=3,
            )
        steps = int(settings.refresh_steps)
        self._recent = RecentFrames(self.model, num_rows, steps) if steps else None
        self._seen_places: SeenPlaces | None = None
        if settings.max_distance is not None:
            self._seen_places = SeenPlaces(num_rows, max(settings.context_lengths), settings.max_distance, device)
        self._started = False
        self._reward_logits: torch.Tensor | None = None
        self.frames = torch.zeros((num_rows, *self._frame_shape), dtype=torch.uint8, device=self.device)
        self.num_context_frames = np.zeros(num_rows, np.int64)
        self.num_steps = np.zeros(num_rows, np.int64)
        self.needs_reset = np.ones(num_rows, np.bool_)

    @property
    def device(self) -> torch.device:
        """The device on which the dreams live."""
        return self.model.device

    @property
    def poses(self) -> np.ndarray | None:
        """Where a model with odometry takes itself to be, float32 [B, 4], seen from the first frame of each context."""
        if not self.model.config.has_odometry or self._graph.memory.pose is None:
            return None
        return self._graph.memory.pose.cpu().numpy().copy()

    @property
    def state_bytes_per_row(self) -> int:
        """Bytes that the memory of one dream takes, from its first step to its last."""
        noise = self._graph.noise_keys.element_size() + self._graph.noise_counters.element_size()
        return self._graph.memory.num_bytes // self.num_rows + noise

    @property
    def ssm_states(self) -> tuple[torch.Tensor, ...]:
        """SSM states of all layers, [B, K, h, d, s] each. Raises ResetNeeded before the first reset."""
        return tuple(layer.ssm_state for layer in self.memory.layers)

    @property
    def memory(self) -> StepMemory:
        """All that the dreams remember, as it is now. Raises ResetNeeded before the first reset."""
        if not self._started:
            raise gym.error.ResetNeeded("There is no memory to look at yet: call reset first.")
        return self._graph.memory

    @property
    def likely_rewards(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the newest step: the likeliest reward other than 0, [B], and how probable the head takes any, [B].

        Raises ResetNeeded before the first step.
        """
        if self._reward_logits is None:
            raise gym.error.ResetNeeded("No reward has been predicted yet: call step first.")
        return likely_rewards(self._reward_logits, self.model.reward_values)

    def start(
        self, rows: Sequence[int], randoms: Sequence[np.random.Generator], contexts: Sequence[Context | None]
    ) -> None:
        """Starts the dreams of `rows` anew, each from its context, or from one that its random generator draws."""
        keys = np.zeros(len(rows), np.int64)
        drawn: dict[int, int] = {}  # row: number of a context of the pool
        given: dict[int, tuple[Context, list[int]]] = {}  # one entry for each context: itself, its rows
        for i, (row, random, context) in enumerate(zip(rows, randoms, contexts, strict=True)):
            keys[i] = random.integers(-(2**63), 2**63, dtype=np.int64)
            if context is None:
                drawn[row] = int(random.integers(len(self._pool)))
                self.num_context_frames[row] = self._pool.num_frames(drawn[row])
            else:
                given.setdefault(id(context), (context, []))[1].append(row)
                self.num_context_frames[row] = context.num_frames
        index = self._to_device(np.array(rows))
        self._graph.set_noise(self._to_device(keys), rows=index)
        if drawn:
            numbers, into = np.array(list(drawn.values())), self._to_device(np.array(list(drawn)))
            self._pool.copy(numbers, self._graph.memory, into)
            if self._seen_places is not None:
                self._seen_places.put(into, self._pool.positions(numbers))
        for context, context_rows in given.values():
            state, positions = read_contexts(self.model, [context], self.action_space)
            copies, into = torch.zeros(len(context_rows), dtype=torch.int64), torch.tensor(context_rows)
            self._graph.load(state.index(copies), into)
            if self._seen_places is not None and positions is not None:
                self._seen_places.put(into.to(self.device), positions.expand(len(into), -1, -1))
        self.frames[index] = model_to_frames(self._graph.memory.frame[index])
        self.num_steps[rows] = 0
        self.needs_reset[rows] = False
        self._started = True

    def step(self, actions: torch.Tensor, outside: torch.Tensor | None = None) -> DreamStep:
        """One imagined frame in every row.

        Args:
            actions: valid ones, from `check_actions` or `DeviceActionCheck`.
            outside: what the latter says of those that were given.

        Raises:
            ValueError: if `outside` is True; the step is taken nevertheless.
        """
        assert self._started
        output = self._graph.step(actions)
        self._reward_logits = output.reward_logits
        rewards = self._rewards(output)
        terminated = output.termination > TERMINATION_THRESHOLD
        if self._settings.end_at_reward:
            terminated = terminated | (rewards != 0)
        flags = torch.cat([terminated, *self._left(), *([] if outside is None else [outside[None]])])
        # The one place where the host waits for the device.
        flags = flags.cpu().numpy()
        terminated = flags[: self.num_rows]
        self.frames = output.frame
        self.num_steps += 1
        self._refresh(output.frame, actions)
        truncated = self.num_steps >= self._settings.horizon
        if self._seen_places is not None:
            truncated |= flags[self.num_rows : 2 * self.num_rows]
        self.needs_reset = terminated | truncated
        if outside is not None and flags[-1]:
            raise ValueError(
                f"Expected {self.num_rows} action(s) from {self.action_space}, got some outside of it on the device; "
                "the step was taken with the nearest ones."
            )
        return DreamStep(output.frame, rewards, terminated, truncated)

    def _left(self) -> list[torch.Tensor]:
        """Which dreams are too far from what their contexts saw, [B]; nothing where that does not matter."""
        if self._seen_places is None:
            return []
        assert self._graph.memory.pose is not None
        return [self._seen_places.left(self._graph.memory.pose)]

    def _rewards(self, output: StepOutput) -> torch.Tensor:
        threshold = self._settings.reward_threshold
        if threshold is None:
            return output.reward
        return rewards_above(threshold, output.reward_logits, self.model.reward_values)

    def _refresh(self, frames: torch.Tensor, actions: torch.Tensor) -> None:
        if self._recent is None:
            return
        self._recent.note(frames, actions, self.num_steps)
        for state, rows in self._recent.refreshed(self.num_steps):
            self._graph.load(state, rows)

    def get_state(self) -> DreamState:
        """A copy that later steps do not touch. Raises ResetNeeded before the first reset."""
        if not self._started:
            raise gym.error.ResetNeeded("There is no episode to copy yet: call reset first.")
        return DreamState(
            self._graph.state(),
            self._graph.noise_keys.clone(),
            self._graph.noise_counters.clone(),
            self.frames.clone(),
            self.num_context_frames.copy(),
            self.num_steps.copy(),
            self.needs_reset.copy(),
            None if self._recent is None else self._recent.get_state(),
            None if self._seen_places is None else self._seen_places.get_state(),
        )

    def set_state(self, state: DreamState) -> None:
        """Goes on from a state of `get_state`, which stays usable. Raises ValueError if it is of another shape."""
        if state.frames.shape != self.frames.shape:
            raise ValueError(
                f"The state holds frames of shape {list(state.frames.shape)}, these dreams {list(self.frames.shape)}."
            )
        refresh_steps = 0 if state.recent is None else state.recent[0].shape[1]
        if refresh_steps != self._settings.refresh_steps:
            raise ValueError(
                f"The state is of dreams with refresh_steps {refresh_steps}, these have {self._settings.refresh_steps}."
            )
        if (state.seen_places is None) != (self._seen_places is None):
            given, own = ("none" if places is None else "one" for places in (state.seen_places, self._seen_places))
            raise ValueError(f"The state is of dreams with {given} max_distance, these have {own}.")
        if self._recent is not None and state.recent is not None:
            self._recent.set_state(state.recent)
        if self._seen_places is not None and state.seen_places is not None:
            self._seen_places.set_state(state.seen_places)
        self._graph.load(state.model_state)
        self._graph.set_noise(state.noise_keys, state.noise_counters)
        self.frames = state.frames.to(self.device, copy=True)
        self.num_context_frames = state.num_context_frames.copy()
        self.num_steps = state.num_steps.copy()
        self.needs_reset = state.needs_reset.copy()
        self._started = True

    @property
    def _frame_shape(self) -> tuple[int, ...]:
        config = self.model.config
        return config.frame_height, config.frame_width, config.frame_channels

    @cached_property
    def _pool(self) -> ContextPool:
        settings = self._settings
        pool = ContextPool(
            self.model,
            self._load_clips(),
            settings.context_lengths,
            settings.starts_per_clip,
            self.action_space,
            self._graph.memory,
            keep_positions=settings.max_distance is not None,
        )
        if self.num_rows > 1 and self.device.type == "cuda":
            # A batch must never wait for a context; on a CPU reading all would keep a user waiting who needs a few.
            pool.read(range(len(pool)))
        return pool

    def _load_clips(self) -> Clips:
        contexts = self._settings.contexts
        clips = load_clips(contexts)
        if clips.frames.shape[2:] != self._frame_shape:
            raise ValueError(
                f"The clips {str(contexts)!r} have frames of shape {list(clips.frames.shape[2:])}, the model "
                f"dreams {list(self._frame_shape)}: pass reset(options={{'context': (frames, actions)}}) or contexts=."
            )
        return clips

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)
