"""Memories of many walks after so many frames, as a probe reads them, and what is around the agent then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.probes.maze_labels import cells_around, look_up, objects_around, seen_cells, walls_around
from training.probes.memories import Walk
from training.probes.probe_model import ProbeData
from training.probes.readouts import Reading
from training.recording.rollouts import Rollouts
from wm_gym.array_typing import Poses
from wm_gym.poses import relative_to_first
from wm_gym.world_model import WorldModel

Maze = tuple[np.ndarray, np.ndarray]  # layout and objects, see `maze_of`


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
    reading: Reading,
    radius: int,
) -> list[Moment]:
    """Reads all walks and stops after each of the lengths to note the memory, and what is around the agent.

    Args:
        poses: as the model is given them, ``[M, T, P]``; None: it is given none.
        lengths: numbers of frames, in ascending order.
    """
    inputs = reading.inputs(model, Walk(walks.frames, walks.actions, poses), lengths)
    moments = []
    for length in lengths:
        paths = walks.pose[:, :length].numpy()
        seat = 0 if reading.around == "start" else -1
        answers = [_surroundings(*maze, own, seat, radius) for maze, own in zip(mazes, paths, strict=True)]
        walls, inside, objects, seen, objects_seen = (np.stack(arrays) for arrays in zip(*answers, strict=True))
        shared = [
            torch.tensor(part, dtype=dtype, device=model.device)
            for part, dtype in ((walls, torch.float32), (inside, torch.bool), (objects, torch.float32))
        ]
        place = relative_to_first(walks.pose[:, :length])[:, -1].to(model.device)
        shared.append(place if reading.tells_pose else place[:, :0])
        data = {source: ProbeData(read[length], *shared) for source, read in inputs.items()}
        moments.append(Moment(data, seen, objects_seen))
    return moments


def _surroundings(
    layout: np.ndarray, objects: np.ndarray, poses: np.ndarray, seat: int, radius: int
) -> tuple[np.ndarray, ...]:
    """Walls [P], inside [P], objects [k, 2], seen [P], objects_seen [k] around pose `seat` of the poses [T, 4]."""
    walls, inside = walls_around(layout, poses[seat], radius)
    seen = seen_cells(layout, poses)
    seen_around = look_up(seen, cells_around(poses[seat], radius))[0]
    objects_seen = look_up(seen, np.floor(objects).astype(np.int64))[0]
    return walls, inside, objects_around(objects, poses[seat]), seen_around, objects_seen
