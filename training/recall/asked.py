"""What a frozen memory answers when it is asked: views of every position of a map, and a small network that reads them.

A question is a frame of pure noise at a pose. It never enters the memory, and a model whose noise is hidden sees
nothing of it, so all that is in the tokens that answer it comes from the memory and from the pose that was asked.
Positions are asked everywhere on the grid, in walls or not: what is asked tells nothing of the maze.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.recall.probe_model import AnyProbe, ProbeData, ProbeTraining, wall_loss
from training.recall.surroundings import grid_around
from wm_gym.array_typing import Frames, Poses, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import LayerState, ModelState
from wm_gym.poses import relative_to
from wm_gym.world_model import WorldModel

QUESTIONS_AT_ONCE = 64  # each reads a copy of the memory, 40 MB in the packaged model
NUM_HEADINGS = 4
OBJECT_WEIGHT = 0.1  # of an object's cross-entropy, beside that of walls


def can_be_asked(config: WorldModelConfig) -> bool:
    """Whether a model takes poses that can be made up, and sees nothing of the noise that is asked with."""
    return config.pose_kind == "planar" and config.hide_noise


def questions_around(radius: int) -> Poses:
    """Poses at the positions of `grid_around`, each looking forward, left, back and right, ``[P, 4, 4]``."""
    position = torch.tensor(grid_around(radius), dtype=torch.float32)
    heading = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
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
    """What each of B memories answers everywhere around, float16 [B, P, 4, columns, D].

    Args:
        state: its newest frame enters the memory before it is asked.
        around_start: positions and headings are those around the pose (0, 0) that poses count from; False: around the
            pose of the newest frame.
    """
    newest = state.pending
    assert newest is not None and newest.pose is not None
    questions = questions_around(radius).to(model.device)
    # Another frame pushes the newest one into the memory; it stays outside itself.
    blank = torch.zeros_like(newest.frame)
    memory = model.advance(state, blank, torch.zeros_like(newest.action), newest.pose)
    answers = []
    for row in range(state.batch_size):
        asked = questions if around_start else _seen_from(questions, newest.pose[row])
        parts = asked.flatten(0, 1).split(QUESTIONS_AT_ONCE)
        tokens = torch.cat([answer(model, memory, row, part).mean(1).half() for part in parts])
        answers.append(tokens.unflatten(0, asked.shape[:2]))
    return torch.stack(answers)


def _seen_from(poses: Poses, origin: Tensor) -> Poses:
    """Poses ``[..., 4]`` that are told relative to ``origin`` ``[4]``, in the coordinates of the latter."""
    x, y, cos, sin = origin.unbind(-1)
    inverse = torch.stack([-x * cos - y * sin, x * sin - y * cos, cos, -sin], dim=-1)
    return relative_to(poses, inverse)


def answer(model: WorldModel, memory: ModelState, row: int, poses: Poses) -> Tokens:
    """The last tokens, before the heads, of frames of pure noise ``[Q, rows, columns, D]`` at poses ``[Q, 4]``.

    Each frame is the one that follows the frames that one row of the memory holds; its pending frame is not read.
    """
    num_questions, c = len(poses), model.config
    layers = tuple(_repeated(layer, row, num_questions) for layer in memory.layers)
    known = memory.num_committed[row].expand(num_questions)
    shape = (num_questions, 1, c.action_size) if c.action_kind == "continuous" else (num_questions, 1)
    no_action = torch.zeros(shape, dtype=torch.int64 if len(shape) == 2 else torch.float32, device=poses.device)
    noisy = poses.new_zeros(num_questions, 1, c.frame_channels, c.frame_height, c.frame_width)
    backbone, pose = model.backbone, poses[:, None]
    with torch.autocast(poses.device.type, torch.bfloat16, enabled=poses.is_cuda):
        level = poses.new_ones(num_questions, 1)
        condition = backbone.condition(level, no_action, level.bool(), pose)
        tokens = backbone.embedding(noisy, pose)
        tokens, _ = backbone.run_layers(tokens, condition, layers, known, num_committed=0)
    return tokens[:, 0].float()


def _repeated(layer: LayerState, row: int, count: int) -> LayerState:
    """One row of a memory, `count` times, without a copy."""
    parts = {field.name: getattr(layer, field.name)[row] for field in dataclasses.fields(layer)}
    return LayerState(**{name: part.expand(count, *part.shape) for name, part in parts.items()})


class AskedProbe(AnyProbe):
    """The same small network at every position: of the four views there and at the eight positions next to it.

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
            nn.Conv2d(NUM_HEADINGS * options.view_width, options.width, 3, padding=1),
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
        inputs=(turn(data.inputs[0]).roll(-quarters, 2),),
        walls=turn(data.walls),
        inside=turn(data.inside),
        objects=torch.stack(objects, -1),
    )
