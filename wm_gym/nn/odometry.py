"""Odometry: where the next frame will be seen from, told from the frames so far and the action.

The next pose is predicted before its frame is there, from recent motion, the action and what the newest frame shows of
walls ahead. Once the frame is there, it is compared with the one before, and what the prediction got wrong is made up
for with the next pose. Recursion runs through a few numbers only, so the frames of a context are looked at in parallel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import Action, Actions, ModelFrame, ModelFrames, Motions, OdometryState, Pose, Poses
from wm_gym.nn.config import WorldModelConfig
from wm_gym.poses import MOTION_SIZE, motion_between, moved

_CHANNELS = (16, 24, 16)  # of the convolutions over one frame; the last is what is kept of the frame before
_PAIR_CHANNELS = (48, 64)  # of those over two frames
_WIDTH = 64
_MOTION_SCALE = 5.0  # motions are fractions of a cell and of a radian; inputs should be of order 1
_RECENT = 2 * MOTION_SIZE  # numbers in the two motions that are remembered


class Looked(NamedTuple):
    """What the frames of a sequence contribute, before any recursion.

    Attributes:
        hidden: input of the first recurrent layer from frames and actions, ``[B, T, width]``.
        out: input of the last one from actions, ``[B, T, 6]``.
        has_previous: 1 where there is a frame before, ``[B, T, 1]``.
        views: what is kept of each frame for the next one, ``[B, T, V]``.
    """

    hidden: Tensor
    out: Tensor
    has_previous: Tensor
    views: Tensor


class Odometry(nn.Module):
    """Predicts the pose of the next frame. All in float32.

    A state ``[B, M]`` goes in and comes out; it belongs to a frame that was not looked at yet. It holds the motion that
    was predicted to lead to this frame, the motion to the frame before, whether there is a frame before, and its view.

    Args:
        config: of the world model, for the shape of frames and actions.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = _CHANNELS
        self.view = nn.Sequential(
            nn.Conv2d(config.frame_channels, first, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(second, third, 3, 2, 1),
        )
        self._view_shape = _view_shape(config)
        wide, deep = _PAIR_CHANNELS
        self.pair = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(2 * third, wide, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(wide, deep, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(deep * math.ceil(self._view_shape[1] / 2) * math.ceil(self._view_shape[2] / 2), _WIDTH),
        )
        self.enter = nn.Linear(_WIDTH + config.action_size + 1, _WIDTH)
        self.recur = nn.Linear(_RECENT, _WIDTH, bias=False)
        self.hidden = nn.Linear(_WIDTH, _WIDTH)
        self.out = nn.Linear(_WIDTH, 2 * MOTION_SIZE, bias=False)
        # In free space motion is close to linear in what it was and in the action.
        self.out_action = nn.Linear(config.action_size, 2 * MOTION_SIZE)
        self.out_recent = nn.Linear(_RECENT, 2 * MOTION_SIZE, bias=False)

    def initial_state(self, batch_size: int, device: torch.device) -> OdometryState:
        """That of the first frame of a dream: at rest, nothing seen before."""
        return torch.zeros(batch_size, odometry_state_size(self.config), device=device)

    def forward(
        self, state: OdometryState, frame: ModelFrame, action: Action, pose: Pose
    ) -> tuple[Pose, OdometryState]:
        """Predict the pose of the next frame.

        Args:
            state: of the newest frame.
            frame: the newest frame, ``[B, C, H, W]`` in [-1, 1].
            action: taken at it, ``[B]`` int64 or ``[B, A]`` float.
            pose: its pose as it was predicted or given, ``[B, 4]``.

        Returns:
            Pose and state of the next frame.
        """
        poses, states = self.follow(state, frame[:, None], action[:, None], pose)
        return poses[:, -1], states

    def first_pose(self, batch_size: int, device: torch.device) -> Pose:
        """The pose of the first frame of a dream, from which all others are seen."""
        return torch.tensor([0.0, 0.0, 1.0, 0.0], device=device).expand(batch_size, -1)

    def follow(
        self, state: OdometryState, frames: ModelFrames, actions: Actions, pose: Pose
    ) -> tuple[Poses, OdometryState]:
        """`forward` along a sequence: T frames ``[B, T, C, H, W]``, the actions taken at them ``[B, T]``.

        Args:
            state, pose: of the first frame.

        Returns:
            Poses of the frames that the actions led to, ``[B, T, 4]``, and the state of the last of them.
        """
        looked = self.look(state, frames, actions)
        corrections, motions, recent = self.motions(state, looked)
        poses = []
        for correction, motion in zip(corrections.unbind(1), motions.unbind(1), strict=True):
            pose = moved(moved(pose, correction), motion)
            poses.append(pose)
        return torch.stack(poses, dim=1), torch.cat([recent, torch.ones_like(recent[:, :1]), looked.views[:, -1]], -1)

    def look(self, state: OdometryState, frames: ModelFrames, actions: Actions) -> Looked:
        """All that needs no recursion; arguments as of `follow`."""
        batch, length = frames.shape[:2]
        views = self.view(frames.flatten(0, 1).float()).view(batch, length, *self._view_shape)
        first = state[:, _RECENT + 1 :].view(batch, 1, *self._view_shape)
        pairs = torch.cat([torch.cat([first, views[:, :-1]], dim=1), views], dim=2)
        compared = F.silu(self.pair(pairs.flatten(0, 1))).view(batch, length, -1)
        has_previous = torch.cat([state[:, None, _RECENT : _RECENT + 1], state.new_ones(batch, length - 1, 1)], dim=1)
        taken = self._numbers(actions)
        hidden = self.enter(torch.cat([compared, taken, has_previous], dim=-1))
        return Looked(hidden, self.out_action(taken), has_previous, views.flatten(2))

    def motions(self, state: OdometryState, looked: Looked) -> tuple[Motions, Motions, Tensor]:
        """The recursion.

        Returns:
            For each frame, how far its pose was off, seen from that pose, ``[B, T, 3]``; the motion from where it
            really was to the next frame, ``[B, T, 3]``; and the recent motions at the end, ``[B, 6]``.
        """
        recent = state[:, :_RECENT]
        corrections, motions = [], []
        for t in range(looked.hidden.shape[1]):
            inputs = recent * _MOTION_SCALE
            x = F.silu(self.hidden(F.silu(looked.hidden[:, t] + self.recur(inputs))))
            change = (looked.out[:, t] + self.out(x) + self.out_recent(inputs)) / _MOTION_SCALE
            correction, motion = change.split(MOTION_SIZE, dim=-1)
            correction = correction * looked.has_previous[:, t]
            # The frame's own correction is to its pose, not to the motion to it: the same up to a small rotation.
            recent = torch.cat([motion, recent[:, :MOTION_SIZE] + correction], dim=-1)
            corrections.append(correction)
            motions.append(motion)
        return torch.stack(corrections, dim=1), torch.stack(motions, dim=1), recent

    def given(self, state: OdometryState, poses: Poses) -> OdometryState:
        """The state after poses that were given, without a look at the frames: they need no making up for.

        Args:
            state: of the first of the frames.
            poses: ``[B, T, 4]`` of that frame and those that follow it.
        """
        motions = motion_between(poses[:, :-1], poses[:, 1:])
        for motion in motions[:, -2:].unbind(1):
            nothing_seen = torch.zeros_like(state[:, _RECENT:])
            state = torch.cat([motion, state[:, :MOTION_SIZE], nothing_seen], dim=-1)
        return state

    def _numbers(self, actions: Actions) -> Tensor:
        if self.config.action_kind == "continuous":
            return actions.float()
        return F.one_hot(actions, self.config.action_size).float()


def odometry_state_size(config: WorldModelConfig) -> int:
    """M, the numbers of a state."""
    return _RECENT + 1 + math.prod(_view_shape(config))


def _view_shape(config: WorldModelConfig) -> tuple[int, int, int]:
    """What three halvings leave of a frame: channels, rows and columns."""
    rows, columns = (math.ceil(size // 2 / 4) for size in (config.frame_height, config.frame_width))
    return _CHANNELS[-1], rows, columns
