"""Where a dream's context was seen from, and which dreams have left that: a model knows nothing of places beyond."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from wm_gym.array_typing import Pose, RowMask


class SeenPlaces:
    """The positions from which the frames of B contexts were seen.

    Args:
        num_rows: B.
        num_frames: of a context; room is made when longer ones come.
        max_distance: from the nearest of them, in the unit of the poses, up to which a dream is among them.
        device: where the positions are kept.
    """

    def __init__(self, num_rows: int, num_frames: int, max_distance: float, device: torch.device) -> None:
        self._max_distance, self._device = float(max_distance), device
        self._positions = self._nowhere(num_rows, num_frames)

    def put(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Takes over the positions [n, T, 2] of new contexts of `rows`, int64 [n] on the device. Nothing waits."""
        missing = positions.shape[1] - self._positions.shape[1]
        if missing > 0:
            longer = self._nowhere(len(self._positions), positions.shape[1])
            longer[:, :-missing] = self._positions
            self._positions = longer
        self._positions[rows] = F.pad(positions, (0, 0, 0, max(-missing, 0)), value=math.inf)

    def left(self, pose: Pose) -> RowMask:
        """Which dreams, at poses [B, 4], are farther from all these positions than they may be."""
        distances = torch.linalg.vector_norm(self._positions - pose[:, None, :2], dim=-1)
        # A pose that is no number is near to nothing.
        return ~(distances <= self._max_distance).any(1)

    def get_state(self) -> torch.Tensor:
        """A copy of the positions, [B, T, 2]."""
        return self._positions.clone()

    def set_state(self, state: torch.Tensor) -> None:
        """Goes on from `get_state`."""
        positions = self._nowhere(*state.shape[:2])
        self._positions = positions.copy_(state)

    def _nowhere(self, num_rows: int, num_frames: int) -> torch.Tensor:
        """Positions that nothing is near to."""
        # Written at every later reset, which may not be in an inference mode that this was made in.
        with torch.inference_mode(False):
            return torch.full((num_rows, num_frames, 2), math.inf, device=self._device)


def check_max_distance(value: object, refresh_steps: int) -> None:
    """Raises ValueError unless it is None, or a finite number above 0 with memories that are never refreshed."""
    if value is None:
        return
    numbers = (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, numbers) or not 0 < value < math.inf:
        raise ValueError(f"max_distance must be a finite number above 0, or None, got {value!r}.")
    if refresh_steps:
        raise ValueError(
            f"max_distance {value} cannot be combined with refresh_steps {refresh_steps}: a refreshed memory forgets "
            "where its context was seen from. Leave one of them out."
        )
