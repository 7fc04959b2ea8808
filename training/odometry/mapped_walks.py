"""Walks through mazes of which a model has made maps, and how odometry learns from them to move by the map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.odometry.learning import ERROR_SCALE, minimise, motion_cost, motion_unit
from training.odometry.progress import PartProgress
from training.probes.memories import Walk, map_part, memories_after
from training.recording.rollouts import read_rollouts
from training.store.episode_store import EpisodeStore, open_store
from wm_gym.array_typing import Actions, Poses
from wm_gym.nn.state import ModelState
from wm_gym.odometry.grid import GridOdometry, InCell, in_cell, walls_around
from wm_gym.odometry.visual import PAST_ACTIONS, VisualOdometry
from wm_gym.poses import MOTION_SIZE, motion_between, moved, placed, relative_to, relative_to_first
from wm_gym.world_model import WorldModel

WINDOWS_PER_READ = 16  # with bearings: windows for each one whose walls are read from the map
_BEFORE = PAST_ACTIONS  # steps of a walk before a window: motions depend on them


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
    grid_offset: float = 0.01  # cells, half as many radians; with bearings: scale of how far the grid is mistaken
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
        if self.grid_offset < 0:
            raise ValueError(f"grid_offset must be at least 0, got {self.grid_offset}.")


class MapWindow(NamedTuple):
    """Parts of B walks.

    Attributes:
        rows: the map of each, int64 ``[B]``.
        poses: before, in and after the window, ``[B, before + T + 1, 4]``.
        actions: that led from each of them to the next.
        origins: where the poses are seen from, as it lies on the grid of walls, ``[B, 4]``; None if that is not known.
        layouts: which cells are walls, ``[B, n, n]``, indexed [y, x]; likewise.
    """

    rows: Tensor
    poses: Poses
    actions: Actions
    origins: Tensor | None = None
    layouts: Tensor | None = None


class MappedWalks:
    """Maps of M walks after some numbers of frames, and the walks.

    Args:
        maps: ``[M, K, G * G, V + 1]``.
        lengths: the K numbers of frames.
        poses: as seen from the first frame, ``[M, T, 4]``.
        actions: ``[M, T - 1]`` or ``[M, T - 1, A]``, or longer.
        origins: the first poses as they lie on the grid of walls, ``[M, 4]``; for odometry with bearings.
        layouts: which cells are walls, ``[M, n, n]``, indexed [y, x]; likewise.
    """

    def __init__(
        self,
        maps: Tensor,
        lengths: list[int],
        poses: Poses,
        actions: Actions,
        origins: Tensor | None = None,
        layouts: Tensor | None = None,
    ) -> None:
        self.maps, self._poses, self._actions = maps, poses, actions
        self._origins, self._layouts = origins, layouts
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
        origins, layouts = (None if part is None else part[walk] for part in (self._origins, self._layouts))
        return MapWindow(walk * num_lengths + number, poses, actions, origins, layouts)


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
    origins = walks.pose[:, 0].float().to(model.device)
    layouts = _layouts(store, seeds, model.device)
    return MappedWalks(maps, lengths, poses.to(model.device), walks.actions.to(model.device), origins, layouts)


def _layouts(store: EpisodeStore, seeds: Sequence[int], device: torch.device) -> Tensor | None:
    """Layouts of the mazes ``[M, n, n]``, None if they were not recorded or differ in size."""
    found = [np.array(store.attributes(seed, "train").get("layout", ())) for seed in seeds]
    if any(layout.ndim != 2 for layout in found) or len({layout.shape for layout in found}) > 1:
        return None
    return torch.from_numpy(np.stack(found)).to(device, torch.float32)


def _maps_of(state: ModelState, _rows: Tensor, _length: int) -> tuple[Tensor, ...]:
    assert state.place_map is not None
    return (state.place_map.half(),)  # half the memory; a cell is read as a mean of what was written


def train_by_map(
    odometry: VisualOdometry, walks: MappedWalks, training: MapTraining, progress: PartProgress | None = None
) -> int:
    """Trains what odometry predicts from the map, in place, and returns the number of steps. Nothing else changes.

    Raises ValueError if the odometry takes bearings and the walks have no layout of their mazes.
    """
    assert odometry.by_map is not None, "the model has no map"
    parameters = list(odometry.by_map.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(training.seed)
    cost = grid_loss if isinstance(odometry.by_map, GridOdometry) else map_loss

    def loss() -> Tensor:
        return cost(odometry, walks.maps, walks.sample(training, generator), training, generator)

    return minimise(parameters, loss, training, "training odometry by map", generator, progress)


def map_loss(
    odometry: VisualOdometry, maps: Tensor, window: MapWindow, training: MapTraining, generator: torch.Generator
) -> Tensor:
    """Errors of the motions that are predicted along windows that begin somewhat beside their walk.

    Each is to go on as the walk does and to come nearer to it: where a wall or free space shows how far it is off, that
    can be learned, so that a dream that is in a wall by a little is led out of it again.

    Args:
        maps: ``[M, K, G * G, V + 1]``.
    """
    assert odometry.by_map is not None
    poses = window.poses
    noise = _normal((len(poses), 1, 2), poses, generator)
    left = training.kept_offset ** torch.arange(training.length + 1, device=poses.device).view(1, -1, 1)
    beside = training.offset * noise * left
    own = torch.cat([poses[:, _BEFORE:, :2] + beside, poses[:, _BEFORE:, 2:]], dim=-1)
    wanted = motion_between(own[:, :-1], own[:, 1:])
    recent, history = _led(odometry, window, training, generator)
    predicted = odometry.by_map(maps.flatten(0, 1), own[:, :-1], recent, history, window.rows)
    return motion_cost((wanted - predicted) / motion_unit(poses.device))


def grid_loss(
    odometry: VisualOdometry, maps: Tensor, window: MapWindow, training: MapTraining, generator: torch.Generator
) -> Tensor:
    """Errors of the motions that are predicted beside the true walls, and of the walls that are read from the map.

    Arguments as of `map_loss`. Raises ValueError for windows without layouts.
    """
    by_map, poses = odometry.by_map, window.poses
    assert isinstance(by_map, GridOdometry)
    if window.origins is None or window.layouts is None:
        raise ValueError("Odometry with bearings learns where walls stop it; these walks have no layout of their maze.")
    device, own = poses.device, poses[:, _BEFORE:-1]
    true = placed(window.origins[:, None].expand_as(own), own)
    walls = walls_around(window.layouts, true, in_cell(true))
    # The grid is mistaken a little, by the same all along a window. A cell must not be mistaken for another.
    mistake = (
        motion_unit(device) / ERROR_SCALE * training.grid_offset * _normal((len(own), 1, MOTION_SIZE), own, generator)
    )
    taken = placed(moved(true[:, :1], mistake).expand_as(own), relative_to(own, own[:, :1]))
    same = (taken[..., :2].floor() == true[..., :2].floor()).all(-1, keepdim=True)
    taken = torch.where(same & (in_cell(taken).axis == in_cell(true).axis)[..., None], taken, true)
    place = in_cell(taken)
    recent, history = _led(odometry, window, training, generator)
    wanted = motion_between(own, poses[:, _BEFORE + 1 :])
    motions = motion_cost((wanted - by_map.moves(place, walls, recent, history)) / motion_unit(device))
    few = slice(math.ceil(len(own) / WINDOWS_PER_READ))  # to read takes most of the time, and is soon learned
    read = by_map.walls(maps.flatten(0, 1), own[few], InCell(*(part[few] for part in place)), window.rows[few])
    return motions + F.binary_cross_entropy_with_logits(read, walls[few])


def _led(
    odometry: VisualOdometry, window: MapWindow, training: MapTraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Recent motions ``[B, T, 6]``, somewhat wrong, and actions as numbers, that led to the poses of a window."""
    poses, count = window.poses, training.length
    true = motion_between(poses[:, :-1], poses[:, 1:])
    recent = torch.cat([true[:, _BEFORE - 1 : -1], true[:, _BEFORE - 2 : -2]], dim=-1)
    recent = recent + motion_unit(poses.device).repeat(2) * _normal(tuple(recent.shape), poses, generator)
    numbers = odometry.as_numbers(window.actions)
    return recent, torch.cat([numbers[:, i : i + count] for i in range(PAST_ACTIONS + 1)], dim=-1)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(like.device)
