"""Sequences seen in a mirror: other mazes for the price of a flip.

A world whose mirror image could be a world as well (Memory Maze's mazes, walls and balls could) gives each recorded
sequence twice: frames flipped from left to right, poses reflected, and actions that turn the other way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.dataset import Batch

REFLECTION = (1.0, -1.0, 1.0, -1.0)  # of a planar pose (x, y, cos heading, sin heading), at the x axis


def check_mirror(actions: Sequence[int], num_actions: int | None, hide_actions: bool, pose_kind: str | None) -> None:
    """Raises ValueError unless sequences of such a model can be mirrored.

    Args:
        actions: what each discrete action becomes; () where the model is told none.
        num_actions: of the model; None if they are continuous.
        hide_actions: whether the model is told none.
        pose_kind: of the model's poses; None if it is given none.
    """
    if pose_kind not in (None, "planar"):
        raise ValueError(f"mirror_probability is above 0, but poses of kind {pose_kind!r} have no known mirror image.")
    if not actions and hide_actions:
        return
    num = num_actions or 0
    if not num or sorted(actions) != list(range(num)) or any(actions[actions[a]] != a for a in actions):
        given = " ".join(map(str, actions)) or "none"
        raise ValueError(
            f"mirrored_actions must say what each of the model's {num_actions or 'continuous'} actions is in the "
            f"mirror, such that twice is none (0 1 3 2 5 4 in Memory Maze), got {given}."
        )


def mirror(batch: Batch, probability: float, actions: Sequence[int], generator: torch.Generator) -> Batch:
    """Shows each sequence in a mirror with a probability.

    Args:
        batch: on the generator's device. Poses of other than four numbers, which the model is not told, stay.
        actions: as in `check_mirror`.
    """
    device = batch.frames.device
    chosen = torch.rand(len(batch.frames), generator=generator, device=device) < probability
    changes = {"frames": _where(chosen, batch.frames.flip(3), batch.frames)}
    if batch.pose.shape[-1] == len(REFLECTION):  # others no model is told that may be mirrored
        changes["pose"] = _where(chosen, batch.pose * batch.pose.new_tensor(REFLECTION), batch.pose)
    if actions:
        changes["actions"] = _where(chosen, torch.tensor(actions, device=device)[batch.actions], batch.actions)
    return dataclasses.replace(batch, **changes)


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), one, other)
