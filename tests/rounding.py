"""Claims about frames that hold on every processor.

Sums run in another order on another processor, with another number of threads or in another batch. A value that lies
half-way between two grey levels is then rounded either way, and an untrained network carries the difference on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

HALF_WAY = 0.02  # grey levels from the middle between two: what 1e-4 of a value in [-1, 1] may move
SAME_DREAM = 0.2  # grey levels on average; frames of different noise differ by tens of them


def assert_same_dream(one: Any, other: Any) -> None:
    """Asserts that two arrays of frames, uint8 of any one shape, show the same dream up to rounding."""
    difference = np.abs(np.asarray(one, np.int64) - np.asarray(other, np.int64))
    assert difference.mean() < SAME_DREAM, f"{difference.mean():.2f} grey levels apart on average"


def assert_rounded_alike(frame: torch.Tensor, other: torch.Tensor, model_frame: torch.Tensor) -> None:
    """Asserts that two uint8 frames ``[B, H, W, C]`` are equal where rounding does not decide.

    Args:
        model_frame: what was rounded to `other`, ``[B, C, H, W]`` in [-1, 1].
    """
    level = (model_frame.permute(0, 2, 3, 1).clamp(-1, 1) + 1) * 127.5
    is_half_way = (level - level.floor() - 0.5).abs() < HALF_WAY
    difference = (frame.int() - other.int()).abs()
    assert not (difference > is_half_way.int()).any(), f"{difference.max()} grey levels apart"
