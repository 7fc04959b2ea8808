"""Agents that learn and plan in a dream, and are scored outside it: `python -m examples.agent_in_a_dream`.

The world stands below; it is so small that its dream is learned in half a minute. The whole way takes less than two
minutes on two cores and leaves its files in outputs/line: episodes, world model, agent, scores.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import wm_gym
from agents.evaluate import EvaluateConfig, describe, evaluate
from agents.learning.config import PRESETS, PpoConfig
from agents.planners.mcts import make_search
from agents.planners.shooting import make_planner
from agents.ppo import train as train_agent
from training.collect import CollectConfig, collect
from training.make_clips import clips_from_store
from training.recipes import Stage, tiny
from training.train import Arguments, train

OUT = Path("outputs/line")
NUM_CELLS, PIXELS = 4, 4
ENV_ID = "Line-v0"


class Line(gym.Env[np.ndarray, np.int64]):
    """A white square on a line of four cells; being at its right end gives reward 1.

    Frames of 16x16; actions 0 left, 1 stay, 2 right; 24 steps. Random play gets about 5.5; who walks to the right and
    stays there, 21 to 24. The seed draws the first cell and the colour of the background.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Puts the agent somewhere on the line."""
        super().reset(seed=seed)
        self._cell = int(self.np_random.integers(NUM_CELLS))
        self._background = self.np_random.integers(0, 100, 3).astype(np.uint8)
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Moves the agent by one place at most."""
        self._cell = int(np.clip(self._cell + int(action) - 1, 0, NUM_CELLS - 1))
        return self._observation(), float(self._cell == NUM_CELLS - 1), False, False, {}

    def _observation(self) -> np.ndarray:
        frame = np.empty((16, 16, 3), np.uint8)
        frame[:] = self._background
        frame[6:10, self._cell * PIXELS : (self._cell + 1) * PIXELS] = 255
        return frame


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "examples.agent_in_a_dream:Line", max_episode_steps=24)

# For `--policy examples.agent_in_a_dream:plan` and `:search`: planning in the model that `main` leaves, by the
# cross-entropy method and by Monte-Carlo tree search.
plan = make_planner(str(OUT / "world/model.safetensors"), horizon=4, hold=1, candidates=32, iterations=1)
search = make_search(str(OUT / "world/model.safetensors"), hold=1, simulations=32, leaves=8, rollout=3)


def make_dream(out: Path, steps: int = 600) -> dict[str, Any]:
    """Records random play, trains a world model on it for `steps`, and returns the arguments that make its dream."""
    config = CollectConfig(
        env=f"examples.agent_in_a_dream:{ENV_ID}", policy="random", out=out / "data", frames=2500, workers=1
    )
    collect(config)
    collect(dataclasses.replace(config, frames=300, split="test", seed=7_000_000))
    model = wm_gym.WorldModelConfig.plain(
        width=32,
        block_sizes=(2, 1),
        scan=wm_gym.ScanConfig(head_dim=16, state_dim=16, num_groups=1),
        window=2,
        num_attention_heads=2,
        feed_forward_multiplier=4,
        condition_width=32,
    )
    stages = (Stage(length=8, batch_size=16, fraction=1.0),)
    recipe = dataclasses.replace(tiny(), model=model, stages=stages, steps=steps, max_minutes=0.0, learning_rate=4e-3)
    checkpoint = train(Arguments(data=out / "data", out=out / "world", recipe=recipe, recipe_name="line"))
    wm_gym.save_clips(out / "clips.npz", clips_from_store(out / "data", "test", num_clips=12, num_frames=4))
    return {"checkpoint": str(checkpoint), "contexts": str(out / "clips.npz"), "context_frames": 4, "horizon": 24}


def main(timesteps: int = 20_000) -> None:
    """Learns the world's dream, learns and plans in it, and scores in the world.

    Args:
        timesteps: dreamed steps in which the agent learns.
    """
    out = OUT
    # 1. A dream of the world.
    dream = make_dream(out)

    # 2. PPO, all in the dream; the world is only asked for scores.
    agent = PpoConfig(
        env="LSSVWM-MemoryMaze-v0",
        env_kwargs=json.dumps(dream),
        out=out / "agent",
        **{**PRESETS["smoke"], "total_timesteps": timesteps},
    )
    train_agent(agent)

    # 3. Scores in the world, in episodes of seeds that nothing was trained on.
    for policy in ("random", str(agent.out), "examples.agent_in_a_dream:plan"):
        path = out / f"score_{Path(policy).name.rpartition(':')[2]}.json"
        config = EvaluateConfig(policy, path, f"examples.agent_in_a_dream:{ENV_ID}", episodes=10, workers=1)
        print(f"{policy}\n{describe(evaluate(config))}")


if __name__ == "__main__":
    tyro.cli(main)
