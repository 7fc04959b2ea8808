"""How far the poses that a model tells itself in its dreams are from the true ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wm_gym.array_typing import Pose, Poses
from wm_gym.poses import drift_steps, motion_between, motion_sizes, relative_to, size_quantiles

DEFINITION = (
    "between the pose that the model tells itself and the true one, both seen from the first frame that it read; "
    "quantiles over mazes by steps of the dream, 0: the last frame of the context"
)


class PoseLog:
    """Poses of B dreams as they are told, beside the true ones. Nothing waits for the device before `errors`.

    Step 0 is the last frame of the context, step t the t-th imagined frame.

    Args:
        recorded: true poses of the context and of the F frames after it, ``[B, C + F, 4]``; None: nothing is logged.
        num_context: C.
    """

    def __init__(self, recorded: Poses | None, num_context: int) -> None:
        self._recorded, self._last = recorded, num_context - 1
        if recorded is not None:
            self._true = recorded[:, self._last :].clone()
            self._told = torch.full_like(self._true, torch.nan)

    def begin(self, step: int, first: int) -> None:
        """From this step on poses are seen from frame `first` of the walk."""
        if self._recorded is not None:
            later = self._recorded[:, self._last + step :]
            self._true[:, step:] = relative_to(later, self._recorded[:, first : first + 1])

    def note(self, step: int, pose: Pose | None) -> None:
        """The poses ``[B, 4]`` that were told of a step."""
        if self._recorded is not None:
            assert pose is not None
            self._told[:, step] = pose

    def errors(self) -> Tensor | None:
        """Cells and degrees, float32 ``[B, F + 1, 2]`` on the CPU."""
        if self._recorded is None:
            return None
        return motion_sizes(motion_between(self._true, self._told)).cpu()


def drift_figures(errors: Tensor) -> dict[str, Any]:
    """Quantiles over mazes of errors ``[M, F + 1, 2]`` by the number of dreamed steps, as JSON types."""
    return {str(step): size_quantiles(errors[:, step]) for step in drift_steps(errors.shape[1] - 1)}


def drift_line(memory: str, drift: Mapping[str, Any]) -> str:
    """One line of text: medians of one memory."""
    steps = ", ".join(
        f"{step}: {of['cells']['median']:.2f} cells {of['degrees']['median']:.1f}°" for step, of in drift.items()
    )
    return f"told poses off by (median, memory {memory}) after steps {steps}"
