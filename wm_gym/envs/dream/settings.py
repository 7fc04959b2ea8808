"""Arguments that the single and the vector environment share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wm_gym.envs.dream.seen_places import check_max_distance

STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class DreamSettings:
    """Arguments that the two environments share; `WorldModelEnv` says what they mean."""

    checkpoint: str | Path
    contexts: str | Path
    context_frames: int | Sequence[int]
    starts_per_clip: int
    device: str | torch.device
    horizon: int
    num_denoising_steps: int
    state_dtype: str
    refresh_steps: int = 0
    end_at_reward: bool = False
    reward_threshold: float | None = None
    max_distance: float | None = None
    feedback_interval: int | None = None
    write_once: float | None = None

    @property
    def context_lengths(self) -> tuple[int, ...]:
        """The lengths that contexts have, in the order given."""
        given = self.context_frames
        return tuple(given) if isinstance(given, Sequence) else (given,)

    def check(self) -> None:
        """Raises ValueError for a number out of range or an unknown dtype."""
        if not self.context_lengths:
            raise ValueError("context_frames must be a whole number from 1 on, or several, got none.")
        for length in self.context_lengths:
            check_count("context_frames", length)
        for name in ("starts_per_clip", "horizon", "num_denoising_steps"):
            check_count(name, getattr(self, name))
        if not isinstance(self.refresh_steps, (int, np.integer)) or self.refresh_steps < 0 or self.refresh_steps == 1:
            raise ValueError(
                f"refresh_steps must be 0 (never) or a whole number from 2 on, got {self.refresh_steps!r}."
            )
        interval = self.feedback_interval
        if interval is not None and (not isinstance(interval, (int, np.integer)) or interval < 0):
            raise ValueError(f"feedback_interval must be 0 (no frame enters) or a whole number, got {interval!r}.")
        if self.reward_threshold is not None and not 0 < self.reward_threshold < 1:
            raise ValueError(f"reward_threshold must be between 0 and 1, or None, got {self.reward_threshold!r}.")
        check_max_distance(self.max_distance, self.refresh_steps)
        if self.state_dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype is one of {', '.join(STATE_DTYPES)}, got {self.state_dtype!r}.")


def check_count(name: str, value: object) -> None:
    """Raises ValueError unless the setting `name` is a whole number of at least 1."""
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}.")
