"""What the world model and the engine know of odometry: where it goes in, and what comes out."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from wm_gym.array_typing import (
    Action,
    Actions,
    FrameMap,
    FrameMask,
    ModelFrame,
    ModelFrames,
    OdometryState,
    Pose,
    Poses,
    RowMask,
)
from wm_gym.ops.step import Backend


class Odometry(Protocol):
    """Predicts the pose that an action leads to, from a state that goes in and comes out.

    A state ``[B, M]`` belongs to a frame together with its pose; it was made before that frame was looked at.
    """

    def initial_state(self, batch_size: int, device: torch.device) -> OdometryState:
        """The state of the first frame of a dream: at rest, nothing seen before."""
        ...

    def first_pose(self, batch_size: int, device: torch.device) -> Pose:
        """The pose of the first frame of a dream, which all others are relative to, ``[B, 4]``."""
        ...

    def given(self, state: OdometryState, poses: Poses, actions: Actions) -> OdometryState:
        """The state after poses that were given; frames are not looked at.

        Args:
            state: of the first of the frames.
            poses: ``[B, T, 4]`` of that frame and those that follow it.
            actions: that led from each to the next, ``[B, T - 1]``.
        """
        ...

    def follow(
        self, state: OdometryState, frames: ModelFrames, actions: Actions, pose: Pose, real: FrameMask | None = None
    ) -> tuple[Poses, OdometryState]:
        """`predict` along a sequence: T frames ``[B, T, C, H, W]``, the actions taken at them ``[B, T]``.

        Args:
            state, pose: of the first frame.
            real: which frames are, ``[B, T]``; None: all of them.

        Returns:
            Poses of the frames that the actions led to, ``[B, T, 4]``, and the state of the last of them.
        """
        ...

    def predict(
        self,
        state: OdometryState,
        frame: ModelFrame,
        action: Action,
        pose: Pose,
        real: RowMask,
        place_map: FrameMap | None = None,
    ) -> tuple[Pose, OdometryState]:
        """Pose ``[B, 4]`` and state of the next frame.

        Args:
            state: of the newest frame.
            frame: the newest frame, ``[B, C, H, W]`` in [-1, 1].
            action: taken at it, ``[B]`` int64 or ``[B, A]`` float.
            pose: its pose as it was predicted or given, ``[B, 4]``.
            real: whether the frame is, ``[B]``. A dreamed one shows the walls ahead, and nothing of the motion that led
                to it.
            place_map: of the memory, if it has one, ``[B, G * G, V + 1]``: where a frame is not real, the motion is
                predicted from it and not from the frame.
        """
        ...

    def predict_by_map(
        self, state: OdometryState, action: Action, pose: Pose, place_map: FrameMap
    ) -> tuple[Pose, OdometryState]:
        """`predict` of a model with a map where no frame is real: frames are neither looked at nor remembered."""
        ...

    def frozen(self, backend: Backend) -> Self:
        """A float32 copy that later training leaves alone, whose operations run on `backend`."""
        ...


class MotionByMap(Protocol):
    """Predicts the motion of a dream's agent from the map in memory around it."""

    def step(
        self, place_map: FrameMap, pose: Pose, recent: Tensor, actions: Tensor, grid: Tensor | None = None
    ) -> tuple[Pose, Tensor]:
        """The next pose ``[B, 4]`` and the recent motions then, ``[B, 6]``.

        Args:
            place_map: ``[B, G * G, V + 1]``.
            pose: of the newest frame, ``[B, 4]``.
            recent: the motions to that pose and to the one before, ``[B, 6]``.
            actions: the ones before, the oldest first, and the newest, as numbers, ``[B, num_actions]``.
            grid: the pose as it lies on the grid of walls, and 1 where that is known, ``[B, 5]``; None without a grid.
        """
        ...
