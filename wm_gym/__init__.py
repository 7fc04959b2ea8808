"""Gymnasium environments that are dreamed by a long-context state-space video world model (LSSVWM).

Importing the package registers the environments; their modules, and MuJoCo with them, are loaded by `gym.make`:

- "LSSVWM-MemoryMaze-v0", the dream (`wm_gym.envs.world_model`); also with `gym.make_vec`.
- "wm_gym/MemoryMaze-{9x9,11x11,13x13,15x15}-v0", the real Memory Maze (`wm_gym.envs.memory_maze.env`); likewise.
"""

from __future__ import annotations

import gymnasium as gym

from wm_gym.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wm_gym.comparison import CompareConfig, Comparison, compare
from wm_gym.contexts import Clips, Context, load_clips, save_clips
from wm_gym.moved import accept_old_names
from wm_gym.nn.config import MapConfig, OdometryConfig, PoseConfig, ScanConfig
from wm_gym.world_model import ModelState, Prediction, WorldModel, WorldModelConfig

__all__ = [
    "Checkpoint",
    "Clips",
    "CompareConfig",
    "Comparison",
    "Context",
    "MapConfig",
    "ModelState",
    "OdometryConfig",
    "PoseConfig",
    "Prediction",
    "ScanConfig",
    "WorldModel",
    "WorldModelConfig",
    "compare",
    "load_checkpoint",
    "load_clips",
    "save_checkpoint",
    "save_clips",
]

accept_old_names()
gym.register(
    "LSSVWM-MemoryMaze-v0",
    entry_point="wm_gym.envs.world_model:WorldModelEnv",
    vector_entry_point="wm_gym.envs.world_model_vector:WorldModelVectorEnv",
)
for _size, _steps in {"9x9": 1000, "11x11": 2000, "13x13": 3000, "15x15": 4000}.items():
    gym.register(
        f"wm_gym/MemoryMaze-{_size}-v0",
        entry_point="wm_gym.envs.memory_maze.env:MemoryMazeEnv",
        vector_entry_point="wm_gym.envs.memory_maze.vector:MemoryMazeVectorEnv",
        max_episode_steps=_steps,
        kwargs={"size": _size},
    )
