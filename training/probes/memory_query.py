"""What a frozen memory answers when it is asked for its own way back, and a small network that reads a map from that.

The network is told all poses of the walk again, in reverse, each with a frame of pure noise, of which a model that
hides noise sees nothing: all that is in the tokens that answer comes from the memory and from the pose. (To ask for
places where it never was would not tell the way, but a model that is taken there in one step remembers little.) That
the way is free tells something of the maze; a probe that is given the way alone shows how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.probes.maze_labels import FIELD_OF_VIEW, grid_around
from training.probes.probe_model import AnyProbe, ProbeData, ProbeTraining, mean_places, object_loss, wall_loss
from wm_gym.array_typing import Actions, Poses, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.map_memory import Places
from wm_gym.nn.state import ModelState
from wm_gym.poses import relative_to
from wm_gym.world_model import WorldModel

FRAMES_AT_ONCE = 120  # of each memory; bounds what a parallel pass takes
NUM_VIEWS = 128  # that are kept of a way back
_VIEW = math.radians(FIELD_OF_VIEW)
FARTHEST = 7.0  # cells; what is farther is not read from a view
OBJECT_WEIGHT = 0.1  # of an object's cross-entropy, beside that of walls
_SCALES = (0.4, 0.8, 1.6, 3.2)  # radians per cell, of a distance as sines and cosines
_NEAR = (0.5, 1.0, 1.5)  # cells


def can_be_asked(config: WorldModelConfig) -> bool:
    """Whether a model is told poses, and sees nothing of the noise that it is asked with."""
    return config.pose.kind == "planar" and config.hide_noise


@torch.no_grad()
def views_back(
    model: WorldModel, state: ModelState, actions: Actions, poses: Poses, num_views: int, from_start: bool
) -> tuple[Tensor, Tensor]:
    """What B memories answer along their way back.

    Args:
        state: after T frames, or the last of them. It stays as it is.
        actions: of the walk, ``[B, T - 1]`` or longer, T at least 2.
        poses: of the walk as the model was told them, ``[B, T, 4]``.
        num_views: that are kept, evenly spaced.
        from_start: the poses that come with the views are those told; False: as seen from the last of them.

    Returns:
        Mean tokens of each column of the views, float16 [B, num_views, columns, D]; and their poses, float32
        [B, num_views, 4].
    """
    length = poses.shape[1]
    back = torch.arange(length - 1, -1, -1)
    # No action walks backwards: those that led the other way, as in `reversed_walks`.
    crossed = torch.cat([back[:1], back[:-1]]) - 1
    asked = poses[:, back].to(model.device)
    parts = answers(model, state, actions[:, crossed].to(model.device), asked)
    columns = torch.cat([tokens.mean(2).half() for tokens in parts], dim=1)
    kept = torch.linspace(0, length - 1, num_views).round().long().to(model.device)
    if not from_start:
        asked = relative_to(asked, asked[:, :1])
    return columns[:, kept], asked[:, kept]


def answers(model: WorldModel, state: ModelState, actions: Actions, poses: Poses) -> Iterator[Tokens]:
    """The last tokens, before the heads, of frames of pure noise that follow a state; in parts along time.

    They are those of a dream of which nothing is fed back. The newest frame enters the memory first, as it is.

    Args:
        actions: that lead to the frames, ``[B, Q]`` or ``[B, Q, A]``.
        poses: of the frames, ``[B, Q, 4]``.
    """
    assert state.pending is not None and state.pending.pose is not None
    c, backbone, newest = model.config, model.backbone, state.pending.with_time()
    layers, known = state.layers, state.num_committed

    def run(frames: Tensor, level: Tensor, action: Tensor, has_action: Tensor, pose: Poses) -> Tokens:
        nonlocal layers, known
        with torch.autocast(pose.device.type, torch.bfloat16, enabled=pose.is_cuda):
            condition = backbone.condition(level, action, has_action, pose)
            tokens = backbone.embedding(frames, pose)
            where = Places(level, pose)
            tokens, layers = backbone.run_layers(tokens, condition, layers, known, frames.shape[1], where)
        known = known + frames.shape[1]
        return tokens.float()

    assert newest.pose is not None
    run(newest.frame, poses.new_zeros(len(poses), 1), newest.action, newest.has_action, newest.pose)
    parts = zip(actions.split(FRAMES_AT_ONCE, dim=1), poses.split(FRAMES_AT_ONCE, dim=1), strict=True)
    for action, pose in parts:
        level = pose.new_ones(pose.shape[:2])
        noise = pose.new_zeros(*level.shape, c.frame_channels, c.frame_height, c.frame_width)
        yield run(noise, level, action, level.bool(), pose)


class AskedProbe(AnyProbe):
    """The same small network at every position of the map: of each view, the column in which the position would be.

    What it takes from a view also depends on where the position is, seen from there; what it takes from all of them is
    summed, and the most is kept. It tells whether there is a wall, and how strongly each object is there; an object
    lies at the mean of all positions under the softmax of that. No direction of the map is told from another.

    Args:
        data: whose inputs are those of `views_back`.
        options: `view_width` numbers are kept of a column; `width` is that of the hidden layers.
    """

    positions: Tensor
    column_angles: Tensor

    def __init__(self, data: ProbeData, options: ProbeTraining) -> None:
        super().__init__()
        columns, size = data.inputs[0].shape[-2:]
        width = options.width
        self.norm = nn.LayerNorm(size)
        self.view = nn.Sequential(nn.Linear(size, options.view_width), nn.Dropout(options.dropout))
        self.seen = nn.Linear(options.view_width, width)
        self.place = nn.Linear(2 * len(_SCALES) + 1 + len(_NEAR), width)
        self.pair = nn.Linear(width, width)
        self.nearest = nn.Linear(2, 2 * width)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1 + data.objects.shape[1]))
        radius = (round(data.walls.shape[1] ** 0.5) - 1) // 2
        offset = 1 - (2 * torch.arange(columns) + 1) / columns  # of the image plane, left positive
        self.register_buffer("positions", torch.tensor(grid_around(radius), dtype=torch.float32), persistent=False)
        self.register_buffer("column_angles", torch.atan(offset * math.tan(_VIEW / 2)), persistent=False)

    def forward(self, inputs: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor]:
        """See `AnyProbe`. Nothing that it is told is used."""
        walls, objects = self.maps(*inputs)
        return walls, mean_places(objects, self.positions)

    def maps(self, views: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of walls [B, P] and of objects [B, k, P]."""
        seat = torch.cat([self.positions, torch.ones_like(self.positions)], -1)
        ahead = relative_to(seat, poses[:, :, None])[..., :2]  # [B, T, P, 2]
        distance, bearing = ahead.norm(dim=-1), torch.atan2(ahead[..., 1], ahead[..., 0])
        column = (bearing[..., None] - self.column_angles).abs().argmin(-1)
        phase = distance[..., None] * distance.new_tensor(_SCALES)
        off = (bearing - self.column_angles[column])[..., None]
        near = (distance[..., None] < distance.new_tensor(_NEAR)).float()
        place = self.place(torch.cat([phase.sin(), phase.cos(), 5 * off, near], -1))
        seen = self.seen(self.view(self.norm(views.float())))
        seen = seen.gather(2, column[..., None].expand(*column.shape, seen.shape[-1]))
        in_view = (bearing.abs() < 0.52 * _VIEW) & (distance < FARTHEST)
        read = F.silu(self.pair(F.silu(place + seen))) * in_view[..., None]
        nearest = distance.amin(1)
        nearest = torch.stack([nearest, (nearest < 0.6).float()], -1)
        found = torch.cat([16 * read.mean(1), read.amax(1)], -1) + self.nearest(nearest)
        maps = self.out(found).transpose(1, 2)
        return maps[:, 0], maps[:, 1:]

    def loss(self, data: ProbeData) -> Tensor:
        """Cross-entropy of the walls inside the maze, and that of the positions around each object."""
        walls, objects = self.maps(*data.inputs)
        return wall_loss(walls, data) + OBJECT_WEIGHT * object_loss(objects, data, self.positions)
