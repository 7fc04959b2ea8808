"""An environment of your own, from recording it to acting in its dream: `python -m examples.own_environment`.

The environment stands below: two rooms, seen from above, one at a time. The whole way takes about two minutes on two
cores and leaves its files in outputs/own_environment. A minute of training shows that the way works, not how well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import wm_gym
from training.collect import CollectConfig, collect
from training.make_clips import clips_from_store
from training.recipes import tiny
from training.train import Arguments, train

ENV_ID = "TwoRooms-v0"
CELLS, PIXELS = 4, 8  # a room has 4 x 4 cells, a cell 8 x 8 pixels
MOVES = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])  # (rows, columns): right, left, down, up


class TwoRooms(gym.Env[np.ndarray, np.int64]):
    """A white dot walks in two rooms that a door joins: a black cell in the right wall of one, the left wall of the
    other. The seed draws the colours of the rooms and the row of the door. Going through it gives reward 1."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (CELLS * PIXELS, CELLS * PIXELS, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Puts the agent into one of the rooms."""
        super().reset(seed=seed)
        self._colors = self.np_random.integers(60, 200, (2, 3)).astype(np.uint8)
        self._door = int(self.np_random.integers(CELLS))
        self._room = int(self.np_random.integers(2))
        self._cell = self.np_random.integers(0, CELLS, 2)
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Moves the agent by one cell, through the door too."""
        row, column = self._cell + MOVES[action]
        through_door = row == self._door and column == (CELLS if self._room == 0 else -1)
        if through_door:
            self._room = 1 - self._room
            column %= CELLS
        self._cell = np.clip((row, column), 0, CELLS - 1)
        return self._observation(), float(through_door), False, False, self._info()

    def _observation(self) -> np.ndarray:
        cells = np.empty((CELLS, CELLS, 3), np.uint8)
        cells[:] = self._colors[self._room]
        cells[self._door, CELLS - 1 if self._room == 0 else 0] = 0
        cells[tuple(self._cell)] = 255
        return cells.repeat(PIXELS, 0).repeat(PIXELS, 1)

    def _info(self) -> dict[str, Any]:
        return {"pose": np.array([self._room, *self._cell], np.float32)}  # optional, for analysis


# gym.make("examples.own_environment:TwoRooms-v0") imports this module first, and with it this line.
if ENV_ID not in gym.registry:
    gym.register(ENV_ID, "examples.own_environment:TwoRooms", max_episode_steps=100)


def wander(env: gym.Env[Any, Any], seed: int) -> Callable[[Any, dict[str, Any]], int]:
    """A policy for recording: keeps its direction for some steps, and is drawn to the door now and then."""
    random = np.random.default_rng(seed)
    action = 0

    def act(obs: np.ndarray, info: dict[str, Any]) -> int:
        nonlocal action
        if random.random() < 0.3:
            action = int(random.integers(len(MOVES)))
        return action

    return act


def psnr(frames: np.ndarray, real: np.ndarray) -> float:
    """Decibels, over all pixels."""
    return float(10 * np.log10(255**2 / np.mean((frames.astype(float) - real) ** 2)))


def main(
    out: Path = Path("outputs/own_environment"), minutes: float = 1.0, frames: int = 20_000, workers: int = 2
) -> None:
    """Records, trains, registers, and dreams.

    Args:
        out: folder for everything that is written.
        minutes: of training.
        frames: to record for training.
        workers: processes that record.
    """
    # 1. Record: episodes to learn from, and held-out ones, whose seeds start at 7,000,000.
    config = CollectConfig(
        env=f"examples.own_environment:{ENV_ID}",
        policy="examples.own_environment:wander",
        out=out / "data",
        frames=frames,
        workers=workers,
    )
    collect(config)
    store = collect(dataclasses.replace(config, frames=808, split="test", seed=7_000_000, workers=1))

    # 2. Train. Frame size and actions of the model follow the data.
    recipe = dataclasses.replace(tiny(), max_minutes=minutes)
    checkpoint = train(Arguments(data=out / "data", out=out / "run", recipe=recipe, recipe_name="tiny"))

    # 3. Register: a dream starts from a real clip, here the beginning of a held-out episode.
    wm_gym.save_clips(out / "clips.npz", clips_from_store(out / "data", "test", num_clips=8, num_frames=51))
    gym.register(
        "TwoRoomsDream-v0",
        entry_point="wm_gym.envs.world_model:WorldModelEnv",
        vector_entry_point="wm_gym.envs.world_model_vector:WorldModelVectorEnv",
        kwargs={"checkpoint": str(checkpoint), "contexts": str(out / "clips.npz"), "context_frames": 50},
    )

    # 4. Act.
    env = gym.make("TwoRoomsDream-v0", horizon=50)
    obs, info = env.reset(seed=0)
    print(f"read {info['context_frames']} real frames, the last one is the first observation: {obs.shape} {obs.dtype}")
    terminated = truncated = False
    while not (terminated or truncated):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
    print(f"dreamed {info['imagined_steps']} frames")

    # 5. Compare: the dream and the real environment under the same actions, in rooms that were never trained on.
    dreamed, real, still = [], [], []
    for seed in store.seeds("test"):
        episode = store.read(seed, "test")
        env.reset(seed=seed, options={"context": (episode.frames[:51], episode.actions[:50])})
        dreamed += [env.step(action)[0] for action in episode.actions[50:70]]
        real += list(episode.frames[51:71])
        still += [episode.frames[50]] * 20
    env.close()
    figures = psnr(np.stack(dreamed), np.stack(real)), psnr(np.stack(still), np.stack(real))
    print(f"20 dreamed frames: {figures[0]:.1f} dB to the real ones; a still picture has {figures[1]:.1f} dB")


if __name__ == "__main__":
    tyro.cli(main)
