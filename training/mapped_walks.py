"""Walks through mazes of which a model has made maps, and how odometry learns from them to move by the map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from training.odometry_training import minimise, motion_cost, motion_unit
from training.recall.memories import Walk, map_part, memories_after
from training.rollouts import read_rollouts
from training.store import open_store
from wm_gym.array_typing import Actions, Poses
from wm_gym.nn.odometry import PAST_ACTIONS, Odometry
from wm_gym.nn.state import ModelState
from wm_gym.poses import motion_between, relative_to_first
from wm_gym.world_model import WorldModel

_BEFORE = PAST_ACTIONS  # steps of a walk before a window, which tell what moves


@dataclass(frozen=True)
class MapTraining:
    """How odometry learns to move by the map. Frames are not needed for it."""

    steps: int = 12000  # at most; 0 trains nothing
    minutes: float | None = None  # ends before, with the whole schedule of the learning rate
    batch_size: int = 128  # windows per step
    length: int = 12  # poses of a window
    learning_rate: float = 3e-3
    ahead: int = 300  # steps after its map was made within which a window lies
    offset: float = 0.1  # cells; scale of how far windows are led beside their walk ...
    kept_offset: float = 0.5  # ... of which so much is left after each step: it is to be led back, as by a wall
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.length < 1 or self.ahead < 1:
            raise ValueError(
                "steps must be at least 0, batch_size, length and ahead at least 1, got "
                f"{self.steps}, {self.batch_size}, {self.length} and {self.ahead}."
            )
        if self.offset < 0 or not 0 <= self.kept_offset <= 1:
            raise ValueError(
                f"offset must be at least 0 and kept_offset in [0, 1], got {self.offset} and {self.kept_offset}."
            )


class MapWindow(NamedTuple):
    """Parts of B walks.

    Attributes:
        rows: the map of each, int64 ``[B]``.
        poses: before, in and after the window, ``[B, before + T + 1, 4]``.
        actions: that led from each of them to the next.
    """

    rows: Tensor
    poses: Poses
    actions: Actions


class MappedWalks:
    """Maps of M walks after some numbers of frames, and the walks.

    Args:
        maps: ``[M, K, G * G, V + 1]``.
        lengths: the K numbers of frames.
        poses: as seen from the first frame, ``[M, T, 4]``.
        actions: ``[M, T - 1]`` or ``[M, T - 1, A]``, or longer.
    """

    def __init__(self, maps: Tensor, lengths: list[int], poses: Poses, actions: Actions) -> None:
        self.maps, self._poses, self._actions = maps, poses, actions
        self._lengths = torch.tensor(lengths, device=maps.device)

    def sample(self, training: MapTraining, generator: torch.Generator) -> MapWindow:
        """Draws windows that follow a map, uniformly from walks and lengths.

        Raises:
            ValueError: walks that end too soon after their last map.
        """
        num_walks, num_lengths = self.maps.shape[:2]
        device, size = self.maps.device, (training.batch_size,)
        room = self._poses.shape[1] - training.length - self._lengths  # places for a window after each map
        if room.min() < 1:
            raise ValueError(
                f"Walks of {self._poses.shape[1]} frames have no window of {training.length} after a map that was made "
                f"after {int(self._lengths.max())} frames."
            )
        draw = torch.rand(3, *size, generator=generator, device=generator.device).to(device)
        walk, number = (draw[0] * num_walks).long(), (draw[1] * num_lengths).long()
        start = self._lengths[number] + (draw[2] * room[number].clamp(max=training.ahead)).long()
        places = start[:, None] + torch.arange(-_BEFORE, training.length + 1, device=device)
        poses, actions = self._poses[walk[:, None], places], self._actions[walk[:, None], places[:, :-1]]
        return MapWindow(walk * num_lengths + number, poses, actions)


def map_walks(model: WorldModel, data: Path, num_walks: int, every: int, num_frames: int = 0) -> MappedWalks:
    """Reads recorded walks, poses given, and notes the map every so many frames but at the end.

    Args:
        model: with a map, frozen; on the device of the maps.
        data: store of the walks, of which the first `num_walks` of the split train are taken.
        every: frames between two maps.
        num_frames: of a walk; 0: as many as the shortest has.

    Raises:
        ValueError: there are fewer walks, or too short ones, or their poses are not planar.
    """
    store = open_store(data)
    seeds = store.seeds("train")
    if len(seeds) < num_walks:
        raise ValueError(f"{data} has {len(seeds)} walks, maps of {num_walks} are to be made; lower --mapped-walks.")
    seeds = seeds[:num_walks]
    length = num_frames or min(store.num_frames(seed, "train") for seed in seeds)
    lengths = list(range(every, length - every + 1, every))
    if not lengths or every <= _BEFORE:
        raise ValueError(f"Walks of {length} frames leave no room after a map that is made after {every} of them.")
    walks = read_rollouts(data, "train", seeds, length)
    if walks.pose.shape[-1] != 4:
        raise ValueError(f"{data} has poses of size {walks.pose.shape[-1]}; maps are made along planar ones.")
    poses = relative_to_first(walks.pose.float())
    noted = memories_after(
        map_part(model), Walk(walks.frames, walks.actions, poses), lengths, "making maps", note=_maps_of
    )
    maps = torch.stack([noted[length][0] for length in lengths], dim=1)
    return MappedWalks(maps, lengths, poses.to(model.device), walks.actions.to(model.device))


def _maps_of(state: ModelState, _rows: Tensor, _length: int) -> tuple[Tensor, ...]:
    assert state.place_map is not None
    return (state.place_map.half(),)  # half the memory; a cell is read as a mean of what was written


def train_by_map(odometry: Odometry, walks: MappedWalks, training: MapTraining) -> int:
    """Trains what odometry tells from the map, in place, and returns the number of steps. Nothing else changes."""
    assert odometry.by_map is not None, "the model has no map"
    parameters = list(odometry.by_map.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(training.seed)

    def loss() -> Tensor:
        return map_loss(odometry, walks.maps, walks.sample(training, generator), training, generator)

    return minimise(parameters, loss, training, "training odometry by map")


def map_loss(
    odometry: Odometry, maps: Tensor, window: MapWindow, training: MapTraining, generator: torch.Generator
) -> Tensor:
    """Errors of the motions that are told along windows that begin somewhat beside their walk.

    Each is to go on as the walk does and to come nearer to it: where a wall or free space tells how far it is off, that
    can be learned, so that a dream that is in a wall by a little is led out of it again.

    Args:
        maps: ``[M, K, G * G, V + 1]``.
    """
    assert odometry.by_map is not None
    poses, device = window.poses, window.poses.device
    true = motion_between(poses[:, :-1], poses[:, 1:])
    recent = torch.cat([true[:, _BEFORE - 1 : -1], true[:, _BEFORE - 2 : -2]], dim=-1)
    noise = torch.randn(len(poses), 1, 2, generator=generator, device=generator.device).to(device)
    left = training.kept_offset ** torch.arange(training.length + 1, device=device).view(1, -1, 1)
    beside = training.offset * noise * left
    own = torch.cat([poses[:, _BEFORE:, :2] + beside, poses[:, _BEFORE:, 2:]], dim=-1)
    wanted = motion_between(own[:, :-1], own[:, 1:])
    unit = motion_unit(device)
    recent = recent + unit.repeat(2) * torch.randn(recent.shape, generator=generator, device=generator.device).to(
        device
    )
    numbers = odometry.as_numbers(window.actions)
    count = training.length
    history = torch.cat([numbers[:, i : i + count] for i in range(PAST_ACTIONS + 1)], dim=-1)
    told = odometry.by_map(maps.flatten(0, 1), own[:, :-1], recent, history, window.rows)
    return motion_cost((wanted - told) / unit)
