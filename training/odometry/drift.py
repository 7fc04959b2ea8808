"""How far odometry is off after a walk of which it sees all frames, and how far in a single step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.odometry.learning import looked_at_beside, spoilt
from training.recording.rollouts import Rollouts
from wm_gym.codec import frames_to_model
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.ops.odometry.motions import follow_motions
from wm_gym.poses import motion_between, motion_sizes, relative_to_first, size_quantiles

ROWS = 8  # walks at a time; bounds the memory


@torch.no_grad()
def drift_figures(odometry: VisualOdometry, walks: Rollouts, steps: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Errors of the pose after so many steps, and of single predicted motions.

    Each walk is cut into pieces of `max(steps)` steps, which are independent dreams' contexts. "frames": real frames,
    as a context has them; "spoilt_frames": blurred and noisy ones, as dreams may have; "frames_alone": from the fifth
    on each is looked at alone, as dreamed ones are.

    Raises:
        ValueError: walks that are shorter than the longest drift.
    """
    length = max(steps) + 1
    pieces = [slice(first, first + length) for first in range(0, walks.frames.shape[1] - length + 1, length - 1)]
    if not pieces:
        raise ValueError(f"Walks have {walks.frames.shape[1]} frames; a drift of {length - 1} steps needs {length}.")
    generator = torch.Generator(next(odometry.parameters()).device).manual_seed(seed)
    figures: dict[str, Any] = {"pieces": len(pieces) * len(walks.frames)}
    for name, fraction, alone in (("frames", 0.0, False), ("spoilt_frames", 1.0, False), ("frames_alone", 0.0, True)):
        parts = [
            _errors(odometry, walks, rows, part, fraction, alone, generator) for rows in _rows(walks) for part in pieces
        ]
        pose_errors, step_errors = (torch.cat(kind) for kind in zip(*parts, strict=True))
        figures[name] = {
            "drift": {str(step): size_quantiles(pose_errors[:, step - 1]) for step in steps},
            "step": size_quantiles(step_errors.flatten(0, 1)),
        }
    true = walks.pose[:, pieces[0]]
    figures["cells_walked"] = round(
        motion_between(true[:, :-1], true[:, 1:])[..., :2].norm(dim=-1).sum(1).mean().item(), 1
    )
    return figures


def _errors(
    odometry: VisualOdometry,
    walks: Rollouts,
    rows: slice,
    part: slice,
    fraction: float,
    alone: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Errors (cells, degrees) of the poses of all frames but the first, and of predicted motions, ``[M, T, 2]``."""
    device = next(odometry.parameters()).device
    frames = frames_to_model(walks.frames[rows, part].to(device))
    actions = walks.actions[rows, part].to(device)[:, : frames.shape[1] - 1]
    frames = spoilt(frames, fraction, generator)[:, :-1]
    true = relative_to_first(walks.pose[rows, part].to(device))
    state = odometry.initial_state(len(frames), device)
    beside = looked_at_beside(torch.full((len(frames),), alone, device=device), frames.shape[1])
    changes, motions, recent = odometry.motions(state, odometry.look(state, frames, actions, beside))
    poses = follow_motions(true[:, 0], torch.zeros_like(recent), changes, motions)
    if odometry.bearings is not None:
        poses, _ = odometry.follow(state, frames, actions, true[:, 0], beside)
    real = motion_between(true[:, :-1], true[:, 1:])
    # After some steps: nothing shows how fast the agent is when it is first seen.
    settled = (real - motions)[:, 5:]
    return motion_sizes(motion_between(true[:, 1:], poses)).cpu(), motion_sizes(settled).cpu()


def _rows(walks: Rollouts) -> list[slice]:
    return [slice(first, first + ROWS) for first in range(0, len(walks.frames), ROWS)]
