"""The windows of one length in a row of episodes, numbered, so that drawing one is drawing a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Place(NamedTuple):
    """Where an episode lies in the rows of all frames and of all transitions."""

    first_frame: int
    first_transition: int
    num_frames: int

    @property
    def frames(self) -> slice:
        """The rows of its frames."""
        return slice(self.first_frame, self.first_frame + self.num_frames)

    @property
    def transitions(self) -> slice:
        """The rows of its transitions."""
        return slice(self.first_transition, self.first_transition + self.num_frames - 1)


class Windows(NamedTuple):
    """B windows by what they are of, which stays the same however episodes are laid out.

    Attributes:
        seeds: of their episodes, int64 ``[B]``.
        starts: index of their first frames in the episodes, int64 ``[B]``.
    """

    seeds: Tensor
    starts: Tensor


@dataclass(frozen=True)
class WindowTable:
    """The windows of one length, numbered through the E episodes that are long enough."""

    total: int
    ends: Tensor  # int64 [E], number of the last window + 1
    begins: Tensor  # int64 [E], number of the first window
    seeds: Tensor  # int64 [E], ascending
    first_frames: Tensor  # int64 [E], rows where the episodes begin
    first_transitions: Tensor  # int64 [E]
    reward_starts: Tensor  # int64 [R], for each of R rewarded transitions the first window that contains it
    reward_counts: Tensor  # int64 [R], and the number of windows that do


def make_window_table(
    places: Mapping[int, Place], rewarded: np.ndarray, length: int, device: torch.device, name: object
) -> WindowTable:
    """The table of all windows of `length` frames.

    Args:
        places: of the episodes by seed, ascending, as their windows are numbered.
        rewarded: bool, one for each row of transitions.
        length: of a window.
        device: of the table.
        name: of the data, for the message.

    Raises:
        ValueError: no episode is long enough, or a length below 1.
    """
    longest = max(place.num_frames for place in places.values())
    if not 1 <= length <= longest:
        raise ValueError(
            f"A window has from 1 to {longest} frames, the length of the longest episode in {name}; got {length}."
        )
    rows, reward_starts, reward_counts = [], [], []
    total = 0
    for seed, place in places.items():
        num_windows = place.num_frames - length + 1
        if num_windows < 1:
            continue
        steps = np.flatnonzero(rewarded[place.transitions])
        first = np.maximum(steps - (length - 2), 0)
        last = np.minimum(steps, num_windows - 1)
        reward_starts.append(total + first[last >= first])
        reward_counts.append((last - first + 1)[last >= first])
        rows.append((total + num_windows, total, seed, place.first_frame, place.first_transition))
        total += num_windows
    columns = (*np.array(rows, np.int64).T.copy(), np.concatenate(reward_starts), np.concatenate(reward_counts))
    return WindowTable(total, *(torch.as_tensor(column).to(device) for column in columns))
