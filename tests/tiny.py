"""A tiny random world model with checkpoint and clips, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wm_gym.checkpoint import save_checkpoint
from wm_gym.contexts import Clips, save_clips
from wm_gym.nn.config import MapConfig, OdometryConfig, PoseConfig, ScanConfig
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.world_model import WorldModel, WorldModelConfig

FRAME_SHAPE = (16, 16, 3)
OBSERVATION_SPACE = gym.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
DISCRETE = gym.spaces.Discrete(3)
CONTINUOUS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
SMALL_SCAN = ScanConfig(head_dim=16, state_dim=16, num_groups=1)


def tiny_model(seed: int = 0, **overrides: Any) -> WorldModel:
    """16x16 frames in four tokens, two layers. Weights are drawn wide enough that dreams differ by action and noise."""
    values: dict[str, Any] = {
        "frame_height": 16,
        "frame_width": 16,
        "width": 32,
        "block_sizes": (2, 1),
        "scan": SMALL_SCAN,
        "window": 3,
        "num_attention_heads": 2,
        "feed_forward_multiplier": 4,
        "condition_width": 16,
        "action_size": 3,
        **overrides,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WorldModel(WorldModelConfig.plain(**values))
        for parameter in model.parameters():
            # Some layers start at zero, which would hide their inputs from a test.
            parameter.data += 0.1 * torch.randn_like(parameter)
        set_termination_bias(model, -20.0)
    if isinstance(model.odometry, VisualOdometry):
        # At random its recursion would multiply rounding errors, which differ from processor to processor.
        for layer in (model.odometry.recur, model.odometry.out_recent):
            layer.weight.data *= 0.05
    return model.eval()


def tiny_model_with_odometry(seed: int = 0, **overrides: Any) -> WorldModel:
    """A tiny model that predicts planar poses by itself."""
    return tiny_model(seed, **{"pose": PLANAR_POSE, "odometry": LEARNED_ODOMETRY, **overrides})


PLANAR_POSE = PoseConfig(ray_lines=False, hide_actions=False)
VECTOR_POSE = PoseConfig(kind="vector", ray_lines=False, hide_actions=False)
LEARNED_ODOMETRY, GRID_ODOMETRY = OdometryConfig(kind="learned"), OdometryConfig(kind="grid")
SMALL_MAP = MapConfig(size=24, width=3, layer=1)
TINY_MAP: dict[str, Any] = {"hide_noise": True, "map": SMALL_MAP}


def set_termination_bias(model: WorldModel, bias: float) -> None:
    """Lets every dream end at the first step (bias 20) or never by itself (bias -20)."""
    model.backbone.event_head.out.bias.data[-1] = bias


def save_tiny_checkpoint(path: Path, model: WorldModel | None = None, action_space: gym.Space[Any] = DISCRETE) -> Path:
    model = tiny_model() if model is None else model
    config = model.config
    save_checkpoint(
        path,
        config=config.to_dict(),
        tensors=model.state_dict(),
        observation_space=gym.spaces.Box(0, 255, (config.frame_height, config.frame_width, 3), np.uint8),
        action_space=action_space,
        metadata={"name": "tiny"},
    )
    return path


def save_maze_sized_checkpoint(path: Path) -> Path:
    """A tiny random model with the frames and actions of Memory Maze."""
    model = tiny_model(frame_height=64, frame_width=64, patch_size=16, action_size=6)
    return save_tiny_checkpoint(path, model, gym.spaces.Discrete(6))


def make_tiny_clips(num_clips: int = 3, num_frames: int = 12) -> Clips:
    """Squares of one colour that walk to the right."""
    rng = np.random.default_rng(0)
    frames = np.full((num_clips, num_frames, *FRAME_SHAPE), 40, np.uint8)
    for clip in range(num_clips):
        color = rng.integers(100, 255, 3)
        for t in range(num_frames):
            x = (t + 3 * clip) % 12
            frames[clip, t, 6:10, x : x + 4] = color
    actions = rng.integers(0, 3, (num_clips, num_frames - 1))
    return Clips(frames, actions, np.arange(7_100_000, 7_100_000 + num_clips))


def save_tiny_clips(path: Path, **sizes: int) -> Path:
    save_clips(path, make_tiny_clips(**sizes))
    return path
