"""Memories of many walks after so many frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from wm_gym.array_typing import Actions, Frames, Poses
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel

ROWS_PER_PREFILL = 8


class Walk(NamedTuple):
    """What M memories are told.

    Attributes:
        frames: uint8 ``[M, T, H, W, C]``.
        actions: ``[M, T - 1]`` or ``[M, T - 1, A]``, or longer.
        poses: as the model is given them, ``[M, T, P]``; None: it is given none.
    """

    frames: Frames
    actions: Actions
    poses: Poses | None


Note = Callable[[ModelState, Tensor, int], tuple[Tensor, ...]]  # of a state, its rows of all walks and their length


def map_part(model: WorldModel) -> WorldModel:
    """The layers of a model up to the one before which its map is written: its memories have the same maps."""
    c = model.config
    config = dataclasses.replace(c, block_sizes=c.block_sizes[: c.map.layer + 1])
    part = WorldModel(config)
    part.load_state_dict({name: value for name, value in model.state_dict().items() if name in part.state_dict()})
    return part.to(model.device).eval().requires_grad_(False)


def ssm_states(state: ModelState, _rows: Tensor, _length: int) -> tuple[Tensor, ...]:
    """A `Note`: bfloat16 [B, K, h, d, s] per layer."""
    return tuple(layer.ssm_state.to(torch.bfloat16) for layer in state.layers)


def memories_after(
    model: WorldModel, walk: Walk, lengths: list[int], what: str, first: int = 0, note: Note = ssm_states
) -> dict[int, tuple[Tensor, ...]]:
    """What is noted of the memory after frames [first, length) of M walks, for each length.

    Walks are read once, from one length to the next.

    Args:
        lengths: in ascending order, above `first`.
        what: for the progress bar.
        note: makes tensors ``[B, ...]`` of a state with B rows.
    """
    rows = torch.arange(len(walk.frames)).split(ROWS_PER_PREFILL)
    parts: dict[int, list[tuple[Tensor, ...]]] = {length: [] for length in lengths}
    for part in tqdm(rows, desc=what, unit="batch", leave=False):
        state, begin = model.initial_state(len(part)), first
        for length in lengths:
            seen, led = walk.frames[part, begin:length], walk.actions[part, max(begin - 1, first) : length - 1]
            pose = None if walk.poses is None else walk.poses[part, begin:length].to(model.device)
            state = model.prefill(state, seen.to(model.device), led.to(model.device), pose)
            parts[length].append(note(state, part, length))
            begin = length
    return {
        length: tuple(torch.cat(noted) for noted in zip(*of_mazes, strict=True)) for length, of_mazes in parts.items()
    }


def with_told_poses(model: WorldModel, walk: Walk, num_rows: int = ROWS_PER_PREFILL) -> Walk:
    """The walk with the poses that a model with odometry tells of it itself, `num_rows` rows at a time."""
    parts = []
    for rows in torch.arange(len(walk.frames)).split(num_rows):
        seen, led = walk.frames[rows].to(model.device), walk.actions[rows, : walk.frames.shape[1] - 1].to(model.device)
        poses = model.prefill_and_locate(model.initial_state(len(rows)), seen, led)[1]
        assert poses is not None  # a model with odometry
        parts.append(poses.cpu())
    return walk._replace(poses=torch.cat(parts))
