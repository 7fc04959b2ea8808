"""Records the clips from which dreams start: `python -m training.make_clips --out wm_gym/clips/memory-maze.npz`.

Seeds from 7,000,000 on are kept out of all training data, so a dream that starts from these clips is in an unseen maze.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from tqdm import trange

import wm_gym
from training.policies import make_policy


@dataclass(frozen=True)
class MakeClips:
    """What to record, and where to."""

    out: Path
    env: str = "wm_gym/MemoryMaze-9x9-v0"
    policy: str = "navigator"
    seed: int = 7_100_000  # of the first clip; the others follow
    num_clips: int = 8
    num_frames: int = 201


def record(env: gym.Env, policy_name: str, seed: int, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `num_frames` frames [T, H, W, C] of an episode and the actions [T - 1] between them.

    Raises ValueError if the episode is shorter.
    """
    policy = make_policy(policy_name, env, seed)
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    frames, actions = [obs], []
    while len(frames) < num_frames:
        action = policy(obs, info)
        obs, _, terminated, truncated, info = env.step(action)
        frames.append(obs)
        actions.append(action)
        if (terminated or truncated) and len(frames) < num_frames:
            raise ValueError(f"The episode of seed {seed} ended after {len(frames)} of {num_frames} frames.")
    return np.stack(frames), np.asarray(actions)


def main(config: MakeClips) -> None:
    env = gym.make(config.env)
    seeds = config.seed + np.arange(config.num_clips)
    episodes = [
        record(env, config.policy, int(seeds[index]), config.num_frames)
        for index in trange(config.num_clips, desc="recording clips")
    ]
    env.close()
    frames, actions = (np.stack(part) for part in zip(*episodes, strict=True))
    wm_gym.save_clips(config.out, wm_gym.Clips(frames, actions, seeds))
    print(f"{config.out}: {config.num_clips} clips of {config.num_frames} frames, {config.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(tyro.cli(MakeClips))
