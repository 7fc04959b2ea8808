"""A memory that is read and written by place: features of what was seen, laid out on a map of the plane.

Each column of tokens looks along a few rays. A frame in memory has written its features at points along its rays, in
portions that the network chooses by distance; a frame to come reads the map at the points along its own rays. So what
was seen from one place is found from any other. Lifting by a distribution over distances is that of arXiv 2008.05711,
a map as the memory of an agent that of arXiv 1702.08360.

The map is a linear state-space model with decay 1, whose keys are places: a state of constant size, to which frames
add. It wraps around, so the world may be larger than the map; places that share a cell then are confused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import FrameMap, NoiseLevels, Pose, Poses, RowMask, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.pose_embedding import heading_angle, ray_angles

_COLUMN_WIDTH = 32  # numbers that a token contributes to its column
_HIDDEN = 224
_FIRST_WEIGHT = -2.0  # logit of what is written at each point
SLIGHT = 1e-2  # weight below which a place counts as hardly seen
_CHUNK = 16  # frames whose maps are kept side by side without gradients


class Places(NamedTuple):
    """Where T frames are seen from, and how much of each is noise.

    Attributes:
        level: noise levels ``[B, T]``; what is noise is not written.
        pose: ``[B, T, 4]``; None of a model without planar poses, which has no map.
    """

    level: NoiseLevels
    pose: Poses | None


class MapMemory(nn.Module):
    """Writes tokens into a map and reads it for others. R rays, D distances, ``[..., V + 1]`` values and weight.

    Args:
        config: with a map, hence planar poses.
    """

    distances: Tensor
    angles: Tensor

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.token_rows, config.token_columns
        self.rays_per_column = max(config.map.rays // columns, 1)
        angles = ray_angles(config.pose, columns * self.rays_per_column)
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("distances", torch.tensor(config.map.distances), persistent=False)
        self.values = config.map.width
        points = self.rays_per_column * len(config.map.distances)
        self.narrow = nn.Linear(config.width, _COLUMN_WIDTH)
        self.lift = nn.Linear(rows * _COLUMN_WIDTH, points * (self.values + 1))
        self.gather = nn.Linear(points * (self.values + 1), _HIDDEN)
        self.row = nn.Parameter(torch.randn(rows, _HIDDEN) * 0.1)
        self.out = nn.Linear(_HIDDEN, config.width)
        nn.init.zeros_(self.out.weight)  # a model that is given a map goes on as it was
        nn.init.zeros_(self.out.bias)

    def forward(
        self, tokens: Tokens, where: Places, state: FrameMap | None, num_committed: int
    ) -> tuple[Tokens, FrameMap | None]:
        """What the map adds to the tokens of T frames, each of which reads what the frames before it have written.

        Args:
            tokens: ``[B, T, rows, columns, width]``.
            where: the frames are seen from.
            state: the map before the first frame, ``[B, G * G, V + 1]``; None: nothing, and none is returned.
            num_committed: leading frames that are written into the map that is returned; the others only read.
        """
        assert where.pose is not None, "a map needs poses"
        places, shares = self.places(where.pose)
        written = self.written(tokens, where.level)
        if state is None:
            maps = self._added(places, shares, written).cumsum(1)
            return self.out_of(self._found(maps, places, shares, before_first=1), tokens), None
        found, committed = [], state
        for start in range(0, tokens.shape[1], _CHUNK):
            part = slice(start, start + _CHUNK)
            added = self._added(places[:, part], shares[:, part], written[:, part])
            maps = torch.cat([state[:, None], added], dim=1).cumsum(1)
            found.append(self._found(maps, places[:, part], shares[:, part]))
            state = maps[:, -1]
            if start < num_committed:
                committed = maps[:, min(num_committed - start, added.shape[1])]
        return self.out_of(torch.cat(found, dim=1), tokens), committed

    def step(self, tokens: Tokens, where: Places, place_map: FrameMap, num_committed: int) -> Tokens:
        """`forward` without gradients, of which all frames but the last are committed, or none of a single one.

        The map is written in place, and nothing of its size is made.
        """
        assert where.pose is not None, "a map needs poses"
        places, shares = self.places(where.pose)
        written = self.written(tokens[:, :num_committed], where.level[:, :num_committed])
        found = []
        for t in range(tokens.shape[1]):
            now = places[:, t : t + 1], shares[:, t : t + 1]
            found.append(self._found(place_map[:, None], *now))
            if t < num_committed:
                self._add(place_map, *now, written[:, t : t + 1])
        return self.out_of(torch.cat(found, dim=1), tokens)

    def fill_in(self, tokens: Tokens, pose: Pose, place_map: FrameMap, rows: RowMask, known_from: float) -> None:
        """Writes one frame of each of B dreams where its map hardly knew anything (`write_once`), in place.

        Args:
            tokens: ``[B, 1, rows, columns, width]`` of frames without noise.
            pose: ``[B, 4]``, where they are seen from.
            place_map: ``[B, G * G, V + 1]``.
            rows: which of the dreams, ``[B]``.
            known_from: weight from which on a place counts as known.
        """
        places, shares = self.places(pose[:, None])
        known = self._found(place_map[:, None], places, shares)[..., -1:]
        written = self.written(tokens, pose.new_zeros(len(pose), 1))
        unknown = (known < known_from) & rows.view(-1, 1, 1, 1, 1)
        self._add(place_map, places, shares, written * unknown)

    def places(self, pose: Poses) -> tuple[Tensor, Tensor]:
        """Cells of the map around the points of each ray, int64 ``[B, T, R, D, 4]``, and the share of each."""
        angle = heading_angle(pose)[..., None] + self.angles  # [B, T, R]
        along = torch.stack([angle.cos(), angle.sin()], dim=-1)[..., None, :] * self.distances[:, None]
        return cells_at((pose[..., None, None, :2].float() + along) / self.config.map.cell, self.config.map.size)

    def written(self, tokens: Tokens, level: NoiseLevels) -> Tensor:
        """Values and weight at the points of each ray, ``[B, T, R, D, V + 1]``, float32."""
        columns = self.narrow(tokens).transpose(2, 3).flatten(3)  # [B, T, columns, rows * narrow]
        lifted = self.lift(F.silu(columns)).float()
        lifted = lifted.view(*lifted.shape[:3], self.rays_per_column, len(self.distances), self.values + 1).flatten(
            2, 3
        )
        weight = (lifted[..., -1:] + _FIRST_WEIGHT).sigmoid() * (1 - 4 * level).clamp(min=0)[..., None, None, None]
        return torch.cat([lifted[..., :-1] * weight, weight], dim=-1)

    def _added(self, places: Tensor, shares: Tensor, written: Tensor) -> Tensor:
        """What each frame adds to the map, ``[B, T, G * G, V + 1]``."""
        batch, frames = written.shape[:2]
        added = written.new_zeros(batch * frames, self.config.map.size**2, self.values + 1)
        index, portions = self._portions(places.flatten(0, 1), shares.flatten(0, 1), written)
        # On a GPU in whatever order (unless torch is set to be deterministic): sorting takes ten times as long.
        return added.flatten(0, 1).index_add_(0, index, portions).view(batch, frames, -1, self.values + 1)

    def _add(self, place_map: FrameMap, places: Tensor, shares: Tensor, written: Tensor) -> None:
        """Adds what one frame ``[B, 1, …]`` has written to a map, in place."""
        index, portions = self._portions(places[:, 0], shares[:, 0], written)
        place_map.view(-1, self.values + 1).index_add_(0, index, portions)

    def _portions(self, places: Tensor, shares: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of n maps after each other, and what goes into each, for places and shares ``[n, R, D, 4]``."""
        first = torch.arange(len(places), device=places.device).view(-1, 1, 1, 1) * self.config.map.size**2
        portions = written.reshape(*shares.shape[:3], 1, -1) * shares[..., None]
        return (places + first).flatten(), portions.flatten(0, -2)

    def _found(self, maps: Tensor, places: Tensor, shares: Tensor, before_first: int = 0) -> Tensor:
        """What maps ``[B, M, G * G, V + 1]`` hold at the points of T frames, ``[B, T, R, D, V + 1]``.

        Frame t reads map ``t - before_first``, and nothing if there is none.
        """
        batch, num_maps, cells = maps.shape[:3]
        number = torch.arange(places.shape[1], device=places.device) - before_first
        if before_first:
            shares = shares * (number >= 0).view(-1, 1, 1, 1)
        number = number.clamp(min=0) + torch.arange(batch, device=places.device)[:, None] * num_maps
        return _sums(maps, places + (number * cells)[..., None, None, None], shares)

    def out_of(self, found: Tensor, tokens: Tokens) -> Tokens:
        """What the points of each ray ``[B, T, R, D, V + 1]`` add to the tokens ``[B, T, rows, columns, width]``."""
        seen = seen_of(found).unflatten(2, (-1, self.rays_per_column)).flatten(3)  # [B, T, columns, points * (V + 1)]
        hidden = self.gather(seen.to(tokens.dtype))
        return self.out(F.gelu(hidden[:, :, None] + self.row[:, None].to(hidden.dtype)))


def cells_at(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The four cells around points ``[..., 2]``, in cells, of a map of `size` x `size` that wraps around.

    Returns:
        Their rows in the map, int64 ``[..., 4]``, and the share that each has of the point, by bilinear interpolation.
    """
    low = points.floor()
    part = points - low
    x, y = (low.long() % size).unbind(-1)
    x2, y2 = (x + 1) % size, (y + 1) % size
    places = torch.stack([x * size + y, x2 * size + y, x * size + y2, x2 * size + y2], dim=-1)
    px, py = part.unbind(-1)
    shares = torch.stack([(1 - px) * (1 - py), px * (1 - py), (1 - px) * py, px * py], dim=-1)
    return places, shares


def seen_of(found: Tensor) -> Tensor:
    """Mean values and the logarithm of their weight, from sums of both: ``[..., V + 1]`` as a map holds them."""
    value, weight = found[..., :-1], found[..., -1:]
    return torch.cat([value / (weight + SLIGHT), torch.log(weight + SLIGHT) + 2], dim=-1)


def read_map(config: WorldModelConfig, place_map: FrameMap, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """What maps hold at points ``[B, n, 2]``, in units of the poses: ``[B, n, V + 1]``, float32.

    Args:
        place_map: ``[B, G * G, V + 1]``, or M of them.
        rows: which of the M each row of points reads, int64 ``[B]``; None: its own.
    """
    if rows is None:
        rows = torch.arange(len(points), device=points.device)
    places, shares = cells_at(points / config.map.cell, config.map.size)
    return _sums(place_map, places + rows.view(-1, 1, 1) * place_map.shape[1], shares)


def _sums(maps: Tensor, places: Tensor, shares: Tensor) -> Tensor:
    """Weighted sums, float32, of the cells `places` ``[..., 4]`` of all maps ``[..., V + 1]`` after each other."""
    found = maps.reshape(-1, maps.shape[-1]).index_select(0, places.flatten()).view(*places.shape, -1)
    return (found.float() * shares[..., None]).sum(-2)


def map_shape(config: WorldModelConfig) -> tuple[int, int]:
    """Cells of a map, and numbers in each: the values and the weight that was written."""
    return config.map.size**2, config.map.width + 1
