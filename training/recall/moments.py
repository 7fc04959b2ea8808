"""Memories of many walks after so many frames, as a probe reads them, and what is around the agent then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.recall.asked import NUM_VIEWS, told_poses, views_back
from training.recall.probe_model import ProbeData
from training.recall.surroundings import cells_around, look_up, objects_around, seen_cells, walls_around
from training.rollouts import Rollouts
from wm_gym.array_typing import Actions, Frames, Poses
from wm_gym.nn.state import ModelState
from wm_gym.poses import relative_to_first
from wm_gym.world_model import WorldModel

Readout = Literal["states", "asked"]
Around = Literal["agent", "start"]
Maze = tuple[np.ndarray, np.ndarray]  # layout and objects, see `maze_of`
Note = Callable[[ModelState, Tensor, int], tuple[Tensor, ...]]  # of a state, its rows of all walks and their length

ROWS_PER_PREFILL = 8


@dataclass(frozen=True)
class Moment:
    """All mazes after the same number of frames: M samples, and which positions and objects the agent saw."""

    data: dict[str, ProbeData]  # by source
    seen: np.ndarray  # bool [M, P]
    objects_seen: np.ndarray  # bool [M, k]


@torch.no_grad()
def read_moments(
    model: WorldModel,
    walks: Rollouts,
    mazes: Sequence[Maze],
    poses: Poses | None,
    lengths: list[int],
    readout: Readout,
    around: Around,
    radius: int,
) -> list[Moment]:
    """Reads all walks and stops after each of the lengths to note the memory, and what is around the agent.

    Args:
        poses: as the model is given them, ``[M, T, P]``; None: it is given none.
        lengths: numbers of frames, in ascending order.
    """
    if readout == "asked" and poses is None:
        # All memories are asked at the same poses, also those that have not read the frame that these count from.
        poses = told_poses(model, walks.frames, walks.actions, ROWS_PER_PREFILL)
    inputs = _inputs(model, walks, poses, lengths, readout, around)
    moments = []
    for length in lengths:
        paths = walks.pose[:, :length].numpy()
        seat = 0 if around == "start" else -1
        answers = [_surroundings(*maze, own, seat, radius) for maze, own in zip(mazes, paths, strict=True)]
        walls, inside, objects, seen, objects_seen = (np.stack(arrays) for arrays in zip(*answers, strict=True))
        shared = [
            torch.tensor(part, dtype=dtype, device=model.device)
            for part, dtype in ((walls, torch.float32), (inside, torch.bool), (objects, torch.float32))
        ]
        place = relative_to_first(walks.pose[:, :length])[:, -1].to(model.device)
        shared.append(place if around == "start" and readout == "states" else place[:, :0])
        data = {source: ProbeData(read[length], *shared) for source, read in inputs.items()}
        moments.append(Moment(data, seen, objects_seen))
    return moments


def _inputs(
    model: WorldModel,
    walks: Rollouts,
    poses: Poses | None,
    lengths: list[int],
    readout: Readout,
    around: Around,
) -> dict[str, dict[int, tuple[Tensor, ...]]]:
    """What the probes read, by source and length."""

    num_views = min(NUM_VIEWS, lengths[0])

    def note(state: ModelState, rows: Tensor, length: int) -> tuple[Tensor, ...]:
        if readout == "states":
            return ssm_states(state, rows, length)
        assert poses is not None
        way = walks.actions[rows], poses[rows, :length]
        return views_back(model, state, *way, num_views, from_start=around == "start")

    def of_last(num_frames: int, what: str) -> dict[int, tuple[Tensor, ...]]:
        found = {}
        for length in lengths:
            found |= memories_after(model, *walk, [length], what, max(0, length - num_frames), note)
        return found

    walk = walks.frames, walks.actions, poses
    inputs = {
        "state": memories_after(model, *walk, lengths, "reading the walks", 0, note),
        "cleared_state": of_last(model.config.window + 1, "reading the last frames"),
    }
    if readout == "states":
        frames = {length: (walks.frames[:, length - 1].to(model.device),) for length in lengths}
        return {**inputs, "last_frame": frames}
    path = {length: (torch.zeros_like(views), posed) for length, (views, posed) in inputs["state"].items()}
    return {**inputs, "last_frame": of_last(1, "reading the last frame"), "path": path}


def ssm_states(state: ModelState, _rows: Tensor, _length: int) -> tuple[Tensor, ...]:
    """A `Note`: bfloat16 [B, K, h, d, s] per layer."""
    return tuple(layer.ssm_state.to(torch.bfloat16) for layer in state.layers)


def memories_after(
    model: WorldModel,
    frames: Frames,
    actions: Actions,
    poses: Poses | None,
    lengths: list[int],
    what: str,
    first: int = 0,
    note: Note = ssm_states,
) -> dict[int, tuple[Tensor, ...]]:
    """What is noted of the memory after frames [first, length) of M walks, for each length.

    Walks are read once, from one length to the next.

    Args:
        frames, actions: uint8 ``[M, T, H, W, C]`` and ``[M, T - 1]`` or longer.
        poses: ``[M, T, P]``, or None.
        lengths: in ascending order, above `first`.
        what: for the progress bar.
        note: makes tensors ``[B, ...]`` of a state with B rows.
    """
    rows = torch.arange(len(frames)).split(ROWS_PER_PREFILL)
    parts: dict[int, list[tuple[Tensor, ...]]] = {length: [] for length in lengths}
    for part in tqdm(rows, desc=what, unit="batch", leave=False):
        state, begin = model.initial_state(len(part)), first
        for length in lengths:
            seen, led = frames[part, begin:length], actions[part, max(begin - 1, first) : length - 1]
            pose = None if poses is None else poses[part, begin:length].to(model.device)
            state = model.prefill(state, seen.to(model.device), led.to(model.device), pose)
            parts[length].append(note(state, part, length))
            begin = length
    return {
        length: tuple(torch.cat(noted) for noted in zip(*of_mazes, strict=True)) for length, of_mazes in parts.items()
    }


def _surroundings(
    layout: np.ndarray, objects: np.ndarray, poses: np.ndarray, seat: int, radius: int
) -> tuple[np.ndarray, ...]:
    """Walls [P], inside [P], objects [k, 2], seen [P], objects_seen [k] around pose `seat` of the poses [T, 4]."""
    walls, inside = walls_around(layout, poses[seat], radius)
    seen = seen_cells(layout, poses)
    seen_around = look_up(seen, cells_around(poses[seat], radius))[0]
    objects_seen = look_up(seen, np.floor(objects).astype(np.int64))[0]
    return walls, inside, objects_around(objects, poses[seat]), seen_around, objects_seen
