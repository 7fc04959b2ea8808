"""What the world model says of frames, actions, poses and weights that do not fit it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wm_gym.nn.config import WorldModelConfig


def check_weights(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> None:
    """Raise ValueError unless the weights `given`, those of `name`, have the names and shapes that are `expected`."""
    wrong = list(expected.keys() ^ given.keys())
    wrong += [key for key in expected.keys() & given.keys() if expected[key].shape != given[key].shape]
    if wrong:
        raise ValueError(f"weights of {name} do not fit its configuration (first mismatch: {min(wrong)}).")


def check_frames(config: WorldModelConfig, frames: Tensor, batch_size: int) -> None:
    """Raise unless ``frames`` are uint8 ``[batch_size, T, H, W, C]`` with at least one frame."""
    shape = (config.frame_height, config.frame_width, config.frame_channels)
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}; expected torch.uint8.")
    fits = frames.ndim == 5 and frames.shape[0] == batch_size and frames.shape[1] >= 1
    if not fits or tuple(frames.shape[2:]) != shape:
        expected = f"[{batch_size}, T, {', '.join(map(str, shape))}]"
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected {expected} with T >= 1.")


def check_model_frame(config: WorldModelConfig, frame: Tensor, batch_size: int) -> None:
    """Raise unless ``frame`` is ``[batch_size, C, H, W]``."""
    expected = (batch_size, config.frame_channels, config.frame_height, config.frame_width)
    if tuple(frame.shape) != expected:
        raise ValueError(f"frame has shape {tuple(frame.shape)}; expected {expected} in model space.")


def check_actions(config: WorldModelConfig, actions: Tensor, batch_size: int, count: int) -> None:
    """Raise unless ``actions`` are ``count`` actions for each row, of the configured kind."""
    discrete = config.action_kind == "discrete"
    expected = (batch_size, count) if discrete else (batch_size, count, config.action_size)
    if tuple(actions.shape) != expected:
        raise ValueError(
            f"actions have shape {tuple(actions.shape)}; expected {expected}: one action between each two frames."
        )
    if discrete == actions.is_floating_point():
        raise TypeError(f"actions are {actions.dtype}; expected {'int64' if discrete else 'a float dtype'}.")


def check_pose(config: WorldModelConfig, pose: Tensor | None, leading: tuple[int, ...]) -> None:
    """Raise unless ``pose`` is None or ``[*leading, P]`` for a model that is conditioned on poses."""
    if pose is None:
        return
    if not config.has_poses:
        raise ValueError("a pose was given to a model without pose conditioning; leave it out.")
    expected = (*leading, config.pose.size)
    if tuple(pose.shape) != expected:
        raise ValueError(f"pose has shape {tuple(pose.shape)}; expected {expected}.")
