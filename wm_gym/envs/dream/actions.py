"""Actions as an environment is given them, and as the model takes them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor


def check_actions(actions: Any, num_rows: int, space: gym.Space[Any]) -> Tensor:
    """Actions of all rows as the model takes them, on the CPU. Raises ValueError if one of them is not in `space`."""
    values = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
    low, high = bounds(space)
    kinds = "iu" if isinstance(space, gym.spaces.Discrete) else "iuf"
    fits = values.shape == (num_rows, *(space.shape or ())) and values.dtype.kind in kinds
    if not fits or not ((values >= low) & (values <= high)).all():
        raise ValueError(f"Expected {num_rows} action(s) from {space}, got {actions!r}.")
    return to_model_actions(values, space)


class DeviceActionCheck:
    """Checks actions that lie on a device without waiting for them.

    Args:
        num_rows: actions of a step.
        space: where they must come from.
        device: where they lie.
    """

    def __init__(self, num_rows: int, space: gym.Space[Any], device: torch.device) -> None:
        self._shape, self._space = (num_rows, *(space.shape or ())), space
        self._discrete = isinstance(space, gym.spaces.Discrete)
        low, high = bounds(space)
        dtype = torch.int64 if self._discrete else torch.float32
        self._low, self._high = (torch.as_tensor(bound, dtype=dtype, device=device) for bound in (low, high))
        self._start = int(low) if self._discrete else 0

    def __call__(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Actions that the model may take, and whether one of those given was outside the space, bool [].

        An action outside is replaced by the nearest in the space, not a number by the lowest.

        Raises:
            ValueError: if shape or dtype do not fit.
        """
        floating = actions.dtype.is_floating_point
        integer = not floating and not actions.dtype.is_complex and actions.dtype != torch.bool
        if tuple(actions.shape) != self._shape or not (integer or (floating and not self._discrete)):
            raise ValueError(
                f"Expected {self._shape[0]} action(s) from {self._space}, got {actions.dtype} {list(actions.shape)}."
            )
        given = actions.detach().to(self._low.dtype)
        if not self._discrete:
            given = given.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        taken = given.clamp(self._low, self._high)
        outside = (taken != given).any()
        return taken - self._start if self._start else taken, outside


def bounds(space: gym.Space[Any]) -> tuple[Any, Any]:
    """Lowest and highest action, both in the space."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    assert isinstance(space, gym.spaces.Box)
    return space.low, space.high


def to_model_actions(actions: np.ndarray, space: gym.Space[Any]) -> Tensor:
    """Valid actions as int64 counted from 0, or as float32."""
    if isinstance(space, gym.spaces.Discrete):
        return torch.from_numpy(actions.astype(np.int64) - int(space.start))
    return torch.from_numpy(actions.astype(np.float32))
