"""Odometry by the frames so far and the action.

The next pose is predicted before its frame is there, from recent motion, the action and what the newest frame shows of
walls ahead. Once the frame is there, it is compared with the one before, and what the prediction got wrong is corrected
with the next pose. A dreamed frame was made for the pose that was predicted: beside the one before it shows that
motion again, whether or not a wall would have stopped it, so it is looked at alone; or, if memory has a map, not at
all (`wm_gym.odometry.by_map`). Recursion runs through a few numbers only, so the frames of a context are looked at in
parallel. With odometry of kind "grid" real frames also show bearings, which undo drift
(`wm_gym.ops.odometry.bearings`).
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import (
    Action,
    Actions,
    FrameMap,
    FrameMask,
    ModelFrame,
    ModelFrames,
    Motions,
    OdometryState,
    Pose,
    Poses,
    RowMask,
)
from wm_gym.nn.config import WorldModelConfig
from wm_gym.odometry.bearings import Bearings
from wm_gym.odometry.by_map import MapOdometry
from wm_gym.odometry.grid import GridOdometry
from wm_gym.ops.odometry.bearings import GRID_STATE_SIZE, filtered_poses, grid_pose, moved_on
from wm_gym.ops.odometry.motions import odometry_motions, odometry_scan, origin_pose
from wm_gym.ops.step import Backend
from wm_gym.poses import MOTION_SIZE, motion_between

_CHANNELS = (16, 24, 16)  # of the convolutions over one frame; the last is what is kept of the frame before
_PAIR_CHANNELS = (48, 48, 64)  # of those over two frames
PAST_ACTIONS = 3  # before the newest one; friction makes free motion more than linear in the last two motions
_WIDTH = 64
_FIRST_SHARPNESS = 10.0  # of the choice among shifts, by how well they fit
_FIRST_TRUST = -2.0  # logit; eyes have to be trained before they are of use
_RECENT = 2 * MOTION_SIZE  # numbers in the two motions that are remembered
_INPUTS = _RECENT + MOTION_SIZE  # and how far the frame is from where it was expected
_OUTPUTS = 2 * MOTION_SIZE  # how far to trust the eyes, and a motion


class Looked(NamedTuple):
    """What the frames of a sequence contribute, before any recursion.

    Attributes:
        hidden: input of the first recurrent layer from frames and actions, ``[B, T, width]``.
        out: input of the last one from actions, ``[B, T, 6]``.
        seen: the motion to each frame as it looks beside the frame before, ``[B, T, 3]``.
        has_previous: 1 where there is a frame before to compare with, ``[B, T, 1]``.
        views: what is kept of each frame for the next one, ``[B, T, V]``.
    """

    hidden: Tensor
    out: Tensor
    seen: Motions
    has_previous: Tensor
    views: Tensor


class VisualOdometry(nn.Module):
    """An `Odometry` that looks at frames, and in dreams at the map. All in float32.

    Gradients go through `look` and `motions` only. A state holds the motion that was predicted to lead to its frame,
    the motion to the frame before, whether there is a frame before, the last actions, the view of the frame before,
    and with bearings where the grid lies.

    Args:
        config: of the world model, for the shape of frames and actions.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = "auto"
        first, second, third = _CHANNELS
        self.view = nn.Sequential(
            nn.Conv2d(config.frame_channels, first, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(second, third, 3, 1, 1),
        )
        self._view_shape = _view_shape(config)
        wide, middle, deep = _PAIR_CHANNELS
        shifts = 2 * config.odometry.largest_shift + 1
        self.pair = nn.Sequential(
            nn.Conv2d(2 * third + shifts, wide, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(wide, middle, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(middle, deep, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
        )
        _, rows, columns = self._view_shape
        self.sharpness = nn.Parameter(torch.tensor(_FIRST_SHARPNESS))
        self.compare = nn.Linear(deep * math.ceil(rows / 4) * math.ceil(columns / 4) + shifts * columns, _WIDTH)
        past = PAST_ACTIONS * config.action_size
        self.enter = nn.Linear(_WIDTH + past + config.action_size + 1, _WIDTH)
        self.recur = nn.Linear(_INPUTS, _WIDTH, bias=False)
        self.hidden = nn.Linear(_WIDTH, _WIDTH)
        self.out = nn.Linear(_WIDTH, _OUTPUTS, bias=False)
        # In free space motion is close to linear in what it was and in the action.
        self.out_action = nn.Linear(past + config.action_size, _OUTPUTS)
        self.out_recent = nn.Linear(_INPUTS, _OUTPUTS, bias=False)
        self.seen = nn.Linear(_WIDTH, MOTION_SIZE)
        on_grid = config.odometry.kind == "grid"
        by_map = GridOdometry if on_grid else MapOdometry
        self.by_map = by_map(config, past + config.action_size) if config.has_map else None
        self.bearings = Bearings(config) if on_grid else None
        with torch.no_grad():
            for layer in (self.out, self.out_recent, self.out_action, self.seen):
                for parameter in layer.parameters():
                    parameter.mul_(0.1)
            self.out_action.bias[:MOTION_SIZE] = _FIRST_TRUST
            # Small innovations are large surprises: untrained, the recursion would multiply rounding errors.
            for layer in (self.recur, self.out_recent):
                layer.weight[:, _RECENT:] *= 0.1

    def initial_state(self, batch_size: int, device: torch.device) -> OdometryState:
        """See `Odometry.initial_state`."""
        return torch.zeros(batch_size, odometry_state_size(self.config), device=device)

    def predict(
        self,
        state: OdometryState,
        frame: ModelFrame,
        action: Action,
        pose: Pose,
        real: RowMask,
        place_map: FrameMap | None = None,
    ) -> tuple[Pose, OdometryState]:
        """See `Odometry.predict`."""
        poses, states = self.follow(state, frame[:, None], action[:, None], pose, real[:, None])
        if self.by_map is None or place_map is None:
            return poses[:, -1], states
        by_map = self.predict_by_map(state, action, pose, place_map)
        is_real = real[:, None]
        return torch.where(is_real, poses[:, -1], by_map[0]), torch.where(is_real, states, by_map[1])

    def predict_by_map(
        self, state: OdometryState, action: Action, pose: Pose, place_map: FrameMap
    ) -> tuple[Pose, OdometryState]:
        """See `Odometry.predict_by_map`."""
        assert self.by_map is not None
        history = self._history(state, action[:, None])[:, 0]
        there, recent = self.by_map.step(place_map, pose, state[:, :_RECENT], history, self._grid(state, pose))
        nothing_seen = state.new_zeros(len(state), 1 + math.prod(self._view_shape))
        parts = [recent, nothing_seen[:, :1], history[:, self.config.action_size :], nothing_seen[:, 1:]]
        if self.bearings is not None:
            parts.append(moved_on(state[:, -GRID_STATE_SIZE:], there[:, :2] - pose[:, :2]))
        return there, torch.cat(parts, dim=-1)

    def first_pose(self, batch_size: int, device: torch.device) -> Pose:
        """See `Odometry.first_pose`."""
        return origin_pose((batch_size,), device)

    def frozen(self, backend: Backend) -> Self:
        """See `Odometry.frozen`."""
        copied = copy.deepcopy(self).float().requires_grad_(False)
        copied.backend = backend
        return copied

    def follow(
        self, state: OdometryState, frames: ModelFrames, actions: Actions, pose: Pose, real: FrameMask | None = None
    ) -> tuple[Poses, OdometryState]:
        """See `Odometry.follow`."""
        hidden, out, seen, has_previous, views = self.look(state, frames, actions, real)
        weights = self._recurrent_weights()
        poses, recent = odometry_scan(
            hidden, out, seen, has_previous, state[:, :_RECENT], pose, *weights, *self._scales(), backend=self.backend
        )
        past = self._history(state, actions)[:, -1, self.config.action_size :]
        parts = [recent, torch.ones_like(recent[:, :1]), past, views[:, -1]]
        if self.bearings is not None:
            sights = self.bearings(frames)
            if real is not None:
                sights = sights * real[..., None]
            followed = torch.cat([pose[:, None], poses], dim=1)
            poses, grid = filtered_poses(state[:, -GRID_STATE_SIZE:], pose, followed, sights, backend=self.backend)
            parts.append(grid)
        return poses, torch.cat(parts, -1)

    def _grid(self, state: OdometryState, pose: Pose) -> Tensor | None:
        """The pose as it lies on the grid and whether that is known, ``[B, 5]``; None without bearings."""
        if self.bearings is None:
            return None
        grid = state[:, -GRID_STATE_SIZE:]
        return torch.cat([grid_pose(grid, pose), grid[:, -1:]], dim=-1)

    def look(
        self, state: OdometryState, frames: ModelFrames, actions: Actions, real: FrameMask | None = None
    ) -> Looked:
        """All that needs no recursion; arguments as of `follow`."""
        batch, length = frames.shape[:2]
        views = _normalized(self.view(frames.flatten(0, 1).float())).view(batch, length, *self._view_shape)
        begin = _RECENT + 1 + PAST_ACTIONS * self.config.action_size
        first = state[:, begin : begin + math.prod(self._view_shape)].view(batch, 1, *self._view_shape)
        before = torch.cat([first, views[:, :-1]], dim=1)
        has_previous = torch.cat([state[:, None, _RECENT : _RECENT + 1], state.new_ones(batch, length - 1, 1)], dim=1)
        if real is not None:  # a dreamed frame has none before it, as the first frame of all
            before, has_previous = before * real[..., None, None, None], has_previous * real[..., None]
        compared = self._compare(before.flatten(0, 1), views.flatten(0, 1)).view(batch, length, -1)
        history = self._history(state, actions)
        hidden = self.enter(torch.cat([compared, history, has_previous], dim=-1))
        seen = self.seen(compared)
        return Looked(hidden, self.out_action(history), seen, has_previous, views.flatten(2))

    def _compare(self, before: Tensor, views: Tensor) -> Tensor:
        """What two views ``[N, C, H, W]`` beside each other show, ``[N, width]``.

        The turn shows in how well a cell fits those of the view before when these are shifted sideways; the way forward
        in how columns differ in that.
        """
        shift = self.config.odometry.largest_shift
        shifted = F.pad(before, (shift, shift)).unfold(3, views.shape[3], 1)  # [N, C, H, shifts, W]
        fit = (shifted * views.unsqueeze(3)).mean(1).transpose(1, 2)  # [N, shifts, H, W]
        columns = (fit.mean(2) * self.sharpness).softmax(1).flatten(1)
        pair = self.pair(torch.cat([before, views, fit], dim=1))
        return F.silu(self.compare(torch.cat([pair, columns], dim=1)))

    def motions(self, state: OdometryState, looked: Looked) -> tuple[Motions, Motions, Tensor]:
        """The recursion with gradients; see :func:`wm_gym.ops.odometry.motions.odometry_motions`."""
        hidden, out, seen, has_previous, _ = looked
        return odometry_motions(
            hidden, out, seen, has_previous, state[:, :_RECENT], *self._recurrent_weights(), *self._scales()
        )

    def _recurrent_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        layers = self.recur, self.hidden, self.out, self.out_recent
        recur, inner, last, last_recent = (layer.weight for layer in layers)
        return recur, inner, self.hidden.bias, last, last_recent

    def _scales(self) -> tuple[float, float]:
        return self.config.odometry.motion_scale, self.config.odometry.surprise

    def given(self, state: OdometryState, poses: Poses, actions: Actions) -> OdometryState:
        """See `Odometry.given`. Given poses have no errors that a later frame would have to correct."""
        if poses.shape[1] == 1:
            return state
        motions = motion_between(poses[:, :-1], poses[:, 1:])
        last = torch.cat([state[:, None, :MOTION_SIZE], motions], dim=1)[:, -2:].flip(1).flatten(1)
        past = self._history(state, actions)[:, -1, self.config.action_size :]
        grid_size = GRID_STATE_SIZE if self.bearings is not None else 0
        nothing_seen = state.new_zeros(len(state), 1 + math.prod(self._view_shape) + grid_size)
        return torch.cat([last, nothing_seen[:, :1], past, nothing_seen[:, 1:]], dim=-1)

    def _history(self, state: OdometryState, actions: Actions) -> Tensor:
        """Each action after the ones before it, the oldest first, ``[B, T, (past + 1) A]``; 0 before the first one."""
        taken = self.as_numbers(actions)
        begin = _RECENT + 1
        past = state[:, begin : begin + PAST_ACTIONS * self.config.action_size]
        actions = torch.cat([past.view(len(past), PAST_ACTIONS, -1), taken], dim=1)
        length = taken.shape[1]
        return torch.cat([actions[:, i : i + length] for i in range(PAST_ACTIONS + 1)], dim=-1)

    def as_numbers(self, actions: Actions) -> Tensor:
        """As the network takes them, ``[B, T, A]``."""
        if self.config.action_kind == "continuous":
            return actions.float()
        return F.one_hot(actions, self.config.action_size).float()


def odometry_state_size(config: WorldModelConfig) -> int:
    """M, the numbers of a state."""
    grid_size = GRID_STATE_SIZE if config.odometry.kind == "grid" else 0
    return _RECENT + 1 + PAST_ACTIONS * config.action_size + math.prod(_view_shape(config)) + grid_size


def _view_shape(config: WorldModelConfig) -> tuple[int, int, int]:
    """What two halvings leave of a frame: channels, rows and columns."""
    rows, columns = (math.ceil(size // 2 / 2) for size in (config.frame_height, config.frame_width))
    return _CHANNELS[-1], rows, columns


def _normalized(views: Tensor) -> Tensor:
    """Views ``[N, C, H, W]`` with cells of about the same length, so that their products measure how alike they are."""
    return views * (views.square().mean(1, keepdim=True) + 1e-2).rsqrt()


Odometry = VisualOdometry  # its name before 0.2.0
