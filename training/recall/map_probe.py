"""A small network that reads walls and objects, place by place, from the map of a model (`wm_gym.nn.map_memory`).

What a frozen model has written around a place is all that the network sees of it, so it needs few mazes: each of them
is hundreds of examples, and eight times as many for every way to turn it and to look at it in a mirror.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.recall.probe_model import AnyProbe, ProbeData, ProbeTraining, mean_places, object_loss, wall_loss
from training.recall.surroundings import grid_around
from wm_gym.array_typing import FrameMap
from wm_gym.nn.map_memory import SLIGHT, cells_at, seen_of
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel

OBJECT_WEIGHT = 0.1  # of an object's cross-entropy, beside that of walls
PATCH_SIDE = 7  # points to each side of the patch around a position
PATCH_STEP = 0.3  # cells between them: with 7 of them a cell and what borders on it


@torch.no_grad()
def written_map(model: WorldModel, state: ModelState) -> FrameMap:
    """The map ``[B, G * G, V + 1]`` of a model that has one, with all frames of the state, also the newest of them."""
    newest = state.pending
    assert newest is not None
    # The newest frame enters in the pass of the one that follows it; which that is, the map does not tell.
    after = model.advance(state, newest.frame, newest.action, newest.pose)
    place_map = after.layers[model.config.map_layer].place_map
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
        walls, objects = zip(*(self.said(around, order) for order in self.orders), strict=True)
        return torch.stack(walls).mean(0), mean_places(torch.stack(objects).mean(0), self.positions)

    def around(self, maps: Tensor, seats: Tensor) -> Tensor:
        """What the maps hold at the points of the patch around each position, [B, P, Q, V + 1]."""
        points = self.positions[:, None] + self.patch
        ahead = torch.stack([seats[:, 2:], torch.stack([-seats[:, 3], seats[:, 2]], -1)], 1)  # forward and left
        points = points @ ahead[:, None] + seats[:, None, None, :2]
        places, shares = cells_at(points / self.map_cell, self.size)
        first = torch.arange(len(maps), device=maps.device).view(-1, 1, 1, 1) * maps.shape[1]
        cells, portions = (places + first).flatten(0, -2), shares.flatten(0, -2)
        found = F.embedding_bag(cells, maps.flatten(0, 1), mode="sum", per_sample_weights=portions)
        return (seen_of(found.view(*places.shape[:-1], -1)) - self.mean) / self.scale

    def said(self, around: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of walls [B, P] and of objects [B, k, P], of patches whose points come in this order."""
        said = self.network(around[:, :, order].flatten(2)).transpose(1, 2)
        return said[:, 0], said[:, 1:]

    def loss(self, data: ProbeData) -> Tensor:
        """Cross-entropy of the walls inside the maze, and that of the positions around each object."""
        order = self.orders[int(torch.randint(len(self.orders), ())) if self.training else 0]
        walls, objects = self.said(self.around(*data.inputs), order)
        return wall_loss(walls, data) + OBJECT_WEIGHT * object_loss(objects, data, self.positions)


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
