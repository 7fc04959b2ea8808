"""Memories of the contexts that dreams start from, ready to be copied."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import gymnasium as gym
import numpy as np
import torch

from wm_gym.contexts import Clips, Context
from wm_gym.engine.memory import StepMemory
from wm_gym.envs.dream.actions import to_model_actions
from wm_gym.world_model import ModelState, WorldModel

_CONTEXTS_PER_PASS = 8  # bounds the memory that reading takes; a pass of one context already fills two CPU cores


class ContextPool:
    """The context number ``clip * num_starts + start`` of each clip and start, read in when it is first wanted.

    With several lengths clips take turns at them, and each has one context, which ends where the clip ends.

    Args:
        model: reads the contexts.
        clips: where they are cut from.
        lengths: of the contexts, in frames.
        starts_per_clip: contexts of one clip, evenly spaced from its beginning to its end; fewer if it has no more.
            It does not count with several lengths.
        action_space: that of the actions of the clips.
        like: memories are kept as this one keeps them.
        keep_positions: whether positions of their frames are kept too; for models with odometry.

    Raises:
        ValueError: if the clips are shorter than a context.
    """

    def __init__(
        self,
        model: WorldModel,
        clips: Clips,
        lengths: Sequence[int],
        starts_per_clip: int,
        action_space: gym.Space,
        like: StepMemory,
        keep_positions: bool = False,
    ) -> None:
        self._model, self._clips, self._lengths, self._action_space = model, clips, tuple(lengths), action_space
        clips.context(0, max(lengths))
        room = clips.frames.shape[1] - lengths[0]
        starts = np.linspace(0, room, starts_per_clip) if len(lengths) == 1 else np.array([room])
        self._starts = np.unique(starts.round().astype(np.int64))
        self._slots = np.full(len(clips) * len(self._starts), -1)  # where each context is kept
        self._num_kept = 0
        self._memory: StepMemory | None = None
        self._like = like
        self._positions: torch.Tensor | None = None  # by number, not by slot: they are small beside the memories
        if keep_positions:
            with torch.inference_mode(False):
                self._positions = torch.full((len(self), max(lengths), 2), math.inf, device=like.device)

    def __len__(self) -> int:
        return len(self._slots)

    def num_frames(self, number: int) -> int:
        """The length of a context."""
        return self._lengths[number % len(self._lengths)]

    def context(self, number: int) -> Context:
        """Frames and actions of a context."""
        clip, start = divmod(number, len(self._starts))
        length = self.num_frames(number)
        first = int(self._starts[start]) if len(self._lengths) == 1 else self._clips.frames.shape[1] - length
        return self._clips.context(clip, length, first)

    def copy(self, numbers: np.ndarray, target: StepMemory, rows: torch.Tensor) -> None:
        """Writes the memories after the contexts `numbers` [n] into `rows`, int64 [n] on the device, of `target`."""
        self.read(numbers)
        assert self._memory is not None
        slots = torch.from_numpy(self._slots[numbers]).to(target.device, non_blocking=True)
        target.copy_rows(rows, self._memory, slots)

    def positions(self, numbers: np.ndarray) -> torch.Tensor:
        """Where the frames of the contexts `numbers` [n] were seen from, [n, T, 2], infinity after the end of shorter
        ones; only with `keep_positions`."""
        assert self._positions is not None
        self.read(numbers)
        return self._positions[torch.from_numpy(numbers).to(self._positions.device, non_blocking=True)]

    def read(self, numbers: Iterable[int]) -> None:
        """Reads in those contexts that are not there yet."""
        missing = [number for number in np.unique(np.fromiter(numbers, np.int64)) if self._slots[number] < 0]
        self._reserve(self._num_kept + len(missing))
        for part in self._passes(missing):
            slots = np.arange(self._num_kept, self._num_kept + len(part))
            contexts = [self.context(number) for number in part]
            state, positions = read_contexts(self._model, contexts, self._action_space)
            assert self._memory is not None
            self._memory.load(state, torch.from_numpy(slots))
            if self._positions is not None:
                assert positions is not None
                self._positions[torch.tensor(part, device=self._positions.device), : positions.shape[1]] = positions
            self._slots[part] = slots
            self._num_kept += len(part)

    def _passes(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Contexts to be read together: a few of one length."""
        for length in sorted(set(self._lengths)):
            alike = [int(number) for number in numbers if self.num_frames(number) == length]
            for first in range(0, len(alike), _CONTEXTS_PER_PASS):
                yield alike[first : first + _CONTEXTS_PER_PASS]

    def _reserve(self, size: int) -> None:
        """Makes room for `size` contexts; more than that, so that it is seldom made."""
        if self._memory is None:
            like = self._like
            self._memory = StepMemory(like.config, size, like.device, like.dtype, like.state_dtype)
        elif size > self._memory.batch_size:
            self._memory = self._memory.resized(min(len(self), max(size, 2 * self._memory.batch_size)))


@torch.no_grad()
def read_contexts(
    model: WorldModel, contexts: list[Context], action_space: gym.Space
) -> tuple[ModelState, torch.Tensor | None]:
    """The memories after contexts of equal length, one row each; and where their frames were seen from.

    Returns:
        The memories, and positions float32 [n, T, 2] seen from each first frame, None of models without odometry.
    """
    frames = torch.from_numpy(np.stack([context.frames for context in contexts])).to(model.device)
    actions = to_model_actions(np.stack([context.actions for context in contexts]), action_space).to(model.device)
    state, poses = model.prefill_and_locate(model.initial_state(len(contexts)), frames, actions)
    return state, None if poses is None or not model.config.has_odometry else poses[..., :2]
