"""What a frozen memory answers when it is asked: views of every position of a map, and a small network that reads them.

A question is a frame of pure noise at a pose, of which a model that hides noise sees nothing: all that is in the tokens
that answer it comes from the memory and from the pose. Questions follow each other as the frames of a dream of which
nothing is fed back. At each position they turn round once, for such a model keeps on painting what it painted last if
it is taken elsewhere, and finds its memory of the place within a few frames.

Positions are asked everywhere on the grid, in walls or not: what is asked tells nothing of the maze.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.recall.probe_model import AnyProbe, ProbeData, ProbeTraining, wall_loss
from training.recall.surroundings import grid_around
from wm_gym.array_typing import Frames, Poses, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import ModelState
from wm_gym.poses import relative_to
from wm_gym.world_model import WorldModel

FRAMES_AT_ONCE = 120  # of each memory; bounds what a parallel pass takes
NUM_HEADINGS = 12  # at each position; steps of 30 degrees, not far above the 18 of an agent that turns
TURN_LEFT = 2  # Memory Maze's action. With others, above all with that of standing still, less is remembered.
OBJECT_WEIGHT = 0.1  # of an object's cross-entropy, beside that of walls


def can_be_asked(config: WorldModelConfig) -> bool:
    """Whether a model takes poses that can be made up, sees nothing of the noise that is asked with, and can turn."""
    turns = config.action_kind == "discrete" and config.action_size > TURN_LEFT
    return config.pose_kind == "planar" and config.hide_noise and turns


def questions_around(radius: int) -> Poses:
    """Poses at the positions of `grid_around`, at each turning left from straight ahead, ``[P, V, 4]``."""
    position = torch.tensor(grid_around(radius), dtype=torch.float32)
    angle = torch.arange(NUM_HEADINGS) * (math.tau / NUM_HEADINGS)
    heading = torch.stack([angle.cos(), angle.sin()], -1)
    views = (len(position), NUM_HEADINGS, 2)
    return torch.cat([position[:, None].expand(views), heading.expand(views)], dim=-1)


def told_poses(model: WorldModel, frames: Frames, actions: Tensor, num_rows: int) -> Poses:
    """Poses ``[M, T, 4]`` that a model with odometry tells of M walks itself, `num_rows` of them at a time."""
    parts = []
    for rows in torch.arange(len(frames)).split(num_rows):
        seen, led = frames[rows].to(model.device), actions[rows].to(model.device)
        poses = model.prefill_and_locate(model.initial_state(len(rows)), seen, led)[1]
        assert poses is not None  # a model with odometry
        parts.append(poses.cpu())
    return torch.cat(parts)


@torch.no_grad()
def asked_views(model: WorldModel, state: ModelState, radius: int, around_start: bool) -> Tensor:
    """What each of B memories answers everywhere around, float16 [B, P, V, 2, D]: its left and its right half.

    Args:
        state: stays as it is.
        around_start: positions and headings are those around the pose (0, 0) that poses count from; False: around the
            pose of the newest frame.
    """
    newest = state.pending
    assert newest is not None and newest.pose is not None
    questions = questions_around(radius).to(model.device)
    poses = questions.flatten(0, 1).expand(state.batch_size, -1, -1)
    if not around_start:
        poses = _as_told_by(newest.pose[:, None], poses)
    halves = [
        torch.stack([half.mean((2, 3)) for half in tokens.chunk(2, dim=3)], dim=2).half()
        for tokens in answers(model, state, poses)
    ]
    return torch.cat(halves, dim=1).unflatten(1, questions.shape[:2])


def _as_told_by(seat: Tensor, poses: Poses) -> Poses:
    """Poses ``[..., 4]`` that are told as seen from ``seat``, in the coordinates of the latter."""
    x, y, cos, sin = seat.unbind(-1)
    inverse = torch.stack([-x * cos - y * sin, x * sin - y * cos, cos, -sin], dim=-1)
    return relative_to(poses, inverse)


def answers(model: WorldModel, state: ModelState, poses: Poses) -> Iterator[Tokens]:
    """The last tokens, before the heads, of frames of pure noise at poses ``[B, Q, 4]``, in parts along Q.

    The newest frame enters the memory first, as it is. The state stays as it is.
    """
    assert state.pending is not None
    c, backbone, batch = model.config, model.backbone, state.batch_size
    newest = state.pending.with_time()
    layers, known = state.layers, state.num_committed

    def run(frames: Tensor, level: Tensor, action: Tensor, has_action: Tensor, pose: Poses) -> Tokens:
        nonlocal layers, known
        with torch.autocast(pose.device.type, torch.bfloat16, enabled=pose.is_cuda):
            condition = backbone.condition(level, action, has_action, pose)
            tokens, layers = backbone.run_layers(
                backbone.embedding(frames, pose), condition, layers, known, num_committed=frames.shape[1]
            )
        known = known + frames.shape[1]
        return tokens.float()

    assert newest.pose is not None
    run(newest.frame, newest.frame.new_zeros(batch, 1), newest.action, newest.has_action, newest.pose)
    for part in poses.split(FRAMES_AT_ONCE, dim=1):
        num = part.shape[1]
        noise = newest.frame.new_zeros(batch, num, c.frame_channels, c.frame_height, c.frame_width)
        level = newest.frame.new_ones(batch, num)
        yield run(noise, level, torch.full_like(level, TURN_LEFT, dtype=torch.int64), level.bool(), part)


class AskedProbe(AnyProbe):
    """The same small network at every position: of all views there and at the eight positions next to it.

    It tells whether there is a wall, and how strongly each object is there; an object lies at the mean of all positions
    under the softmax of that.

    Args:
        data: of one input, `asked_views`.
        options: `width` is that of the hidden layers.
    """

    positions: Tensor

    def __init__(self, data: ProbeData, options: ProbeTraining) -> None:
        super().__init__()
        views = data.inputs[0]
        self.side = round(views.shape[1] ** 0.5)
        self.num_objects = data.objects.shape[1]
        self.norm = nn.LayerNorm(views.shape[-1])
        self.view = nn.Linear(views.shape[-2] * views.shape[-1], options.view_width)
        self.mlp = nn.Sequential(
            nn.Dropout(options.dropout),
            nn.Conv2d(views.shape[2] * options.view_width, options.width, 3, padding=1),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Conv2d(options.width, options.width, 1),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Conv2d(options.width, 1 + self.num_objects, 1),
        )
        grid = torch.tensor(grid_around((self.side - 1) // 2), dtype=torch.float32)
        self.register_buffer("positions", grid, persistent=False)

    def forward(self, inputs: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor]:
        """See `AnyProbe`. Nothing that it is told is used."""
        walls, objects = self.maps(inputs[0])
        return walls, objects.softmax(-1) @ self.positions

    def maps(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of walls [B, P] and of objects [B, k, P]."""
        seen = F.silu(self.view(self.norm(views.float()).flatten(-2)))
        of_positions = self.mlp(seen.flatten(-2).transpose(1, 2).unflatten(2, (self.side, self.side))).flatten(2)
        return of_positions[:, 0], of_positions[:, 1:]

    def loss(self, data: ProbeData) -> Tensor:
        """Cross-entropy of the walls inside the maze, and that of the positions around each object."""
        walls, objects = self.maps(data.inputs[0])
        near = (1 - (data.objects[..., None, :] - self.positions).abs()).clamp(min=0).prod(-1)
        of_objects = -(near * objects.log_softmax(-1)).sum(-1).mean()
        return wall_loss(walls, data) + OBJECT_WEIGHT * of_objects


def turned(data: ProbeData, quarters: int) -> ProbeData:
    """The same answers as if the pose that positions count from had stood `quarters` quarter turns to the left."""
    side = round(data.walls.shape[1] ** 0.5)

    def turn(of_positions: Tensor) -> Tensor:
        return of_positions.unflatten(1, (side, side)).rot90(-quarters, (1, 2)).flatten(1, 2)

    forward, left = data.objects.unbind(-1)
    objects = [(forward, left), (left, -forward), (-forward, -left), (-left, forward)][quarters % 4]
    return replace(
        data,
        inputs=(turn(data.inputs[0]).roll(-quarters * NUM_HEADINGS // 4, 2),),
        walls=turn(data.walls),
        inside=turn(data.inside),
        objects=torch.stack(objects, -1),
    )
