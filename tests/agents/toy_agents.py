"""What tests of planners share: an agent that was trained for a moment, and a look at what a planner remembers."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents.learning.config import PRESETS, PpoConfig
from agents.ppo import train
from wm_gym.wrappers.memory import FrameReader

TOY_ID = "tests.toy_env:tests/ToyMaze-v0"


def trained_agent(folder: Path, dream: dict[str, Any], memory: bool) -> PpoConfig:
    """A run of one training seed in a dream of the given arguments, with seed_0/best.zip."""
    run = PpoConfig(
        env="LSSVWM-MemoryMaze-v0",
        env_kwargs=json.dumps(dream),
        real_env=TOY_ID,
        real_env_kwargs='{"max_episode_steps": 2}',
        **{**PRESETS["smoke"], "total_timesteps": 64, "num_envs": 4, "score_episodes": 1},
        out=folder / "run",
        memory=memory,
        memory_size=8,
    )
    train(run)
    return run


def check_memory_is_of_real_frames(planner: Any, checkpoint: str, env: gym.Env[Any, Any]) -> None:
    """A planner with a `RealMemory` has in it what a `FrameReader` makes of the same frames and actions."""
    reader = FrameReader(checkpoint, 1, "cpu", env.observation_space, env.action_space)
    for seed in range(2):  # The second episode knows nothing of the first.
        obs, info = env.reset(seed=seed)
        planner.reset(info)
        reader.start(obs[None])
        for _ in range(5):
            action = planner(obs, info)
            obs, _, _, _, info = env.step(action)
            reader.read(obs[None], [action])
        planner(obs, info)
        assert planner._memory.state is not None and reader.state is not None
        for ours, theirs in zip(planner._memory.state.layers, reader.state.layers, strict=True):
            torch.testing.assert_close(ours.ssm_state, theirs.ssm_state)
