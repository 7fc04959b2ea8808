"""A small network that reads walls and objects, place by place, from the map of a model (`wm_gym.nn.map_memory`).

What a frozen model has written around a place is all that the network sees of it, so it needs few mazes: each of them
is hundreds of examples, and eight times as many for every way to turn it and to look at it in a mirror.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.probes.maze_labels import grid_around
from training.probes.probe_model import AnyProbe, ProbeData, ProbeTraining, mean_places, object_loss, wall_loss
from wm_gym.array_typing import FrameMap
from wm_gym.nn.map_memory import SLIGHT, cells_at, seen_of
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel

OBJECT_WEIGHT = 0.4  # of an object's cross-entropy, beside that of walls
PATCH_SIDE = 7  # points to each side of the patch around a position
PATCH_STEP = 0.3  # cells between them: with 7 of them a cell and what borders on it
_NOWHERE = -20.0  # logit of an object


@torch.no_grad()
def written_map(model: WorldModel, state: ModelState) -> FrameMap:
    """The map ``[B, G * G, V + 1]`` of a model that has one, with all frames of the state, also the newest of them."""
    newest = state.pending
    assert newest is not None
    # Whatever frame follows it: that one is not on the map yet.
    after = model.advance(state, newest.frame, newest.action, newest.pose)
    place_map = after.layers[model.config.map.layer].place_map
    assert place_map is not None
    return place_map


class MapProbe(AnyProbe):
    """The same small network at every position that is asked: it is given the map around it, and nothing else.

    It tells whether there is a wall, and how strongly each object is there; an object lies at the mean of all positions
    under the softmax of that. In training each batch is turned and mirrored at random; an answer is the mean of those
    to all eight ways to turn and mirror what is around.

    Args:
        data: whose inputs are maps as they are in a state, float32 [S, G * G, V + 1], and the poses on them, [S, 4],
            around which positions are asked.
        options: `width` is that of the hidden layers.
        map_cell: side of a cell of the map, in cells of the maze.
    """

    positions: Tensor
    patch: Tensor
    orders: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, data: ProbeData, options: ProbeTraining, map_cell: float) -> None:
        super().__init__()
        maps, width = data.inputs[0], options.width
        self.map_cell = map_cell
        self.size = round(maps.shape[1] ** 0.5)
        radius = (round(data.walls.shape[1] ** 0.5) - 1) // 2
        patch = PATCH_STEP * grid_around(PATCH_SIDE // 2)
        mean, scale = _statistics(maps)
        self.register_buffer("positions", torch.tensor(grid_around(radius), dtype=torch.float32), persistent=False)
        self.register_buffer("patch", torch.tensor(patch, dtype=torch.float32), persistent=False)
        self.register_buffer("orders", _symmetries(PATCH_SIDE), persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.network = nn.Sequential(
            nn.Dropout(options.dropout),
            nn.Linear(len(patch) * maps.shape[2], width),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Linear(width, 1 + data.objects.shape[1]),
        )

    def forward(self, inputs: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor]:
        """See `AnyProbe`. Nothing that it is told is used."""
        around = self.around(*inputs)
        said = torch.stack([self.network(around[:, :, order].flatten(2)) for order in self.orders]).mean(0)
        walls, objects = self.split(said, inputs)
        return walls, mean_places(objects, self.positions)

    def around(self, maps: Tensor, seats: Tensor) -> Tensor:
        """What the maps hold at the points of the patch around each position, [B, P, Q, V + 1]."""
        points = on_map(self.positions[:, None] + self.patch, seats)
        places, shares = cells_at(points / self.map_cell, self.size)
        first = torch.arange(len(maps), device=maps.device).view(-1, 1, 1, 1) * maps.shape[1]
        cells, portions = (places + first).flatten(0, -2), shares.flatten(0, -2)
        found = F.embedding_bag(cells, maps.flatten(0, 1), mode="sum", per_sample_weights=portions)
        return (seen_of(found.view(*places.shape[:-1], -1)) - self.mean) / self.scale

    def split(self, said: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of walls [B, P] and of objects [B, k, P], of what is said of each position, [B, P, 1 + k].

        A map wraps around, so positions that are farther apart than it is wide may lie at the same place of it. Objects
        are looked for at those on the side where the middle is of what was written.
        """
        maps, seats = inputs
        extent = self.size * self.map_cell
        middle = written_middle(maps[..., -1]) * extent  # of all its copies the one next to the seat
        from_seat = (middle - seats[:, :2] + extent / 2) % extent - extent / 2
        off = on_map(self.positions[:, None], seats)[:, :, 0] - (seats[:, :2] + from_seat)[:, None]
        elsewhere = (off.abs() > extent / 2).any(-1)
        return said[..., 0], said[..., 1:].transpose(1, 2).masked_fill(elsewhere[:, None], _NOWHERE)

    def loss(self, data: ProbeData) -> Tensor:
        """Cross-entropy of the walls inside the maze, and that of the positions around each object."""
        order = self.orders[int(torch.randint(len(self.orders), ())) if self.training else 0]
        said = self.network(self.around(*data.inputs)[:, :, order].flatten(2))
        walls, objects = self.split(said, data.inputs)
        return wall_loss(walls, data) + OBJECT_WEIGHT * object_loss(objects, data, self.positions)


def on_map(points: Tensor, seats: Tensor) -> Tensor:
    """Where points [P, Q, 2], forward and left of poses [B, 4], are on the map: [B, P, Q, 2], in cells of the maze."""
    ahead = torch.stack([seats[:, 2:], torch.stack([-seats[:, 3], seats[:, 2]], -1)], 1)  # forward and left
    return points @ ahead[:, None] + seats[:, None, None, :2]


def written_middle(weights: Tensor) -> Tensor:
    """The middle of what was written into maps that wrap around, [B, 2] in widths of the map, of weights [B, G * G].

    It is the mean direction, on the circle that each axis is; places count the less for being written to more often.
    """
    size = round(weights.shape[1] ** 0.5)
    share = (weights / (weights + weights.mean(1, keepdim=True) + SLIGHT)).unflatten(1, (size, size))
    angle = torch.arange(size, device=weights.device) * (math.tau / size)
    sums = torch.stack([share.sum(2), share.sum(1)], 1)  # along x and along y
    return torch.atan2((sums * angle.sin()).sum(-1), (sums * angle.cos()).sum(-1)) / math.tau


def _symmetries(side: int) -> Tensor:
    """The orders of the points of a square patch that turn and mirror it, int64 [8, side * side]."""
    upright = torch.arange(side * side).view(side, side)
    return torch.stack([kind.rot90(turns).flatten() for kind in (upright, upright.flip(0)) for turns in range(4)])


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the numbers of all cells that something was written into, [V + 1] each; never 0 spread."""
    written = seen_of(maps[maps[..., -1] > SLIGHT].float())
    if len(written) < 2:
        return maps.new_zeros(maps.shape[-1]), maps.new_ones(maps.shape[-1])
    return written.mean(0), written.std(0).clamp(min=1e-3)
