"""State refresh: a memory that is made anew, from time to time, from the frames that were imagined last.

What a recurrent state gathers over a long dream (rounding, drift) is thrown away with it, and so is everything that
only the old state knew.
"""

from __future__ import annotations

import numpy as np
import torch

from wm_gym.array_typing import Action, Frame
from wm_gym.world_model import ModelState, WorldModel

ROWS_PER_PREFILL = 8  # bounds the memory that reading takes


class RecentFrames:
    """The frames of each of B dreams since its last refresh, and the actions that led to them.

    Args:
        model: that dreams.
        num_rows: B.
        num_steps: from one refresh to the next, at least 2. Each row keeps so many frames.
    """

    def __init__(self, model: WorldModel, num_rows: int, num_steps: int) -> None:
        c, device = model.config, model.device
        self._model, self._num_steps = model, num_steps
        shape = (num_rows, num_steps, c.frame_height, c.frame_width, c.frame_channels)
        self._frames = torch.zeros(shape, dtype=torch.uint8, device=device)
        if c.action_kind == "discrete":
            self._actions = torch.zeros(num_rows, num_steps, dtype=torch.int64, device=device)
        else:
            self._actions = torch.zeros(num_rows, num_steps, c.action_size, device=device)

    def note(self, frames: Frame, actions: Action, num_steps: np.ndarray) -> None:
        """Keeps the newest frames, uint8 ``[B, H, W, C]``, and what led to them.

        Args:
            num_steps: int64 ``[B]``, steps of each row's episode, this one included.
        """
        device = self._frames.device
        slots = torch.from_numpy((num_steps - 1) % self._num_steps).to(device, non_blocking=True)
        rows = torch.arange(len(num_steps), device=device)
        self._frames[rows, slots] = frames
        self._actions[rows, slots] = actions.to(device)

    def refreshed(self, num_steps: np.ndarray) -> list[tuple[ModelState, torch.Tensor]]:
        """Memories for those rows that are due after `num_steps` ``[B]`` steps: states, and the rows that they are of.

        A state has read the last frames of its rows and nothing else.
        """
        due = torch.from_numpy(np.flatnonzero(num_steps % self._num_steps == 0))
        return [(self._read(rows), rows) for rows in due.split(ROWS_PER_PREFILL) if len(rows)]

    @torch.no_grad()
    def _read(self, rows: torch.Tensor) -> ModelState:
        # A row is due when its slots have just been filled from the first to the last: they are in order.
        picked = rows.to(self._frames.device)
        state = self._model.initial_state(len(rows))
        return self._model.prefill(state, self._frames[picked], self._actions[picked, 1:])

    def get_state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of frames and actions."""
        return self._frames.clone(), self._actions.clone()

    def set_state(self, state: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Goes on from `get_state`."""
        for ours, given in zip((self._frames, self._actions), state, strict=True):
            ours.copy_(given)
