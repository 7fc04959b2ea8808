"""Records the clips from which dreams start: `python -m training.make_clips --out wm_gym/clips/memory-maze.npz`.

`--data STORE` takes them from recorded episodes instead, of any environment; with `--before-rewards 5 100` from moments
that a reward follows 5 to 100 steps later: where an agent meets rewards soon, it learns what leads to them.
Seeds from 7,000,000 on are kept out of all training data, so a dream that starts from these clips is in an unseen maze.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from tqdm import trange

import wm_gym
from training.data.reward_moments import moments_before_rewards
from training.recording.policies import make_policy
from training.store.episode_store import open_store


@dataclass(frozen=True)
class MakeClips:
    """What to record, and where to."""

    out: Path
    env: str = "wm_gym/MemoryMaze-9x9-v0"
    policy: str = "navigator"
    seed: int = 7_100_000  # of the first clip; the others follow. Of a store: decides what --before-rewards draws
    num_clips: int = 8
    num_frames: int = 201
    data: Path | None = None  # take the beginnings of episodes of this store; env and policy do not count then
    split: str = "test"  # of the store
    newest: bool = False  # take the store's last episodes, not its first
    before_rewards: tuple[int, int] | None = None  # of a store: end so many steps before a reward, at least and at most
    compress: bool = True  # False: many times faster to write and read, and larger


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


def clips_from_store(path: Path, split: str, num_clips: int, num_frames: int, newest: bool = False) -> wm_gym.Clips:
    """The first `num_frames` frames of the first (or last) episodes, by seed, of a split that are long enough.

    Raises:
        FileNotFoundError: no such store.
        ValueError: it has fewer than `num_clips` such episodes.
    """
    store = open_store(path)
    seeds = [seed for seed in store.seeds(split) if store.num_frames(seed, split) >= num_frames]
    seeds = seeds[-num_clips:] if newest else seeds[:num_clips]
    if len(seeds) < num_clips:
        raise ValueError(
            f"{path} has {len(seeds)} episodes of {num_frames} frames or more in split {split!r}, "
            f"{num_clips} are needed."
        )
    episodes = [store.read(seed, split) for seed in seeds]
    frames = np.stack([episode.frames[:num_frames] for episode in episodes])
    actions = np.stack([episode.actions[: num_frames - 1] for episode in episodes])
    return wm_gym.Clips(frames, actions, np.array(seeds))


def clips_before_rewards(
    path: Path, split: str, num_clips: int, num_frames: int, steps: tuple[int, int], seed: int
) -> wm_gym.Clips:
    """Parts of `num_frames` frames that end where the next reward is `steps[0]` to `steps[1]` steps away.

    All such moments of the split are equally likely, and none is drawn twice.

    Raises:
        FileNotFoundError: no such store.
        ValueError: a range that is none, or fewer than `num_clips` such moments.
    """
    store = open_store(path)
    numbers, ends = moments_before_rewards(store, split, num_frames, steps)
    if len(ends) < num_clips:
        raise ValueError(
            f"{path} has {len(ends)} moments in split {split!r} that follow {num_frames} frames and come {steps[0]} to "
            f"{steps[1]} steps before a reward, {num_clips} are needed."
        )
    chosen = np.sort(np.random.default_rng(seed).choice(len(ends), num_clips, replace=False))
    frames = np.empty((num_clips, num_frames, *store.header.frame_shape), np.uint8)
    actions = []
    for index, moment in enumerate(chosen):
        number, end = int(numbers[moment]), int(ends[moment]) + 1
        store.read_frames(number, end - num_frames, end, split, frames[index])
        actions.append(store.read_actions(number, split)[end - num_frames : end - 1])
    return wm_gym.Clips(frames, np.stack(actions), numbers[chosen])


def record_clips(config: MakeClips) -> wm_gym.Clips:
    """Clips of new episodes, seeds from `config.seed` on."""
    env = gym.make(config.env)
    seeds = config.seed + np.arange(config.num_clips)
    episodes = [
        record(env, config.policy, int(seeds[index]), config.num_frames)
        for index in trange(config.num_clips, desc="recording clips")
    ]
    env.close()
    frames, actions = (np.stack(part) for part in zip(*episodes, strict=True))
    return wm_gym.Clips(frames, actions, seeds)


def main(config: MakeClips) -> None:
    """Writes the clips that a configuration asks for."""
    if config.data is None:
        if config.before_rewards is not None:
            raise ValueError("before_rewards chooses from recorded episodes: give --data.")
        clips = record_clips(config)
    elif config.before_rewards is not None:
        wanted = config.num_clips, config.num_frames, config.before_rewards, config.seed
        clips = clips_before_rewards(config.data, config.split, *wanted)
    else:
        clips = clips_from_store(config.data, config.split, config.num_clips, config.num_frames, config.newest)
    wm_gym.save_clips(config.out, clips, compress=config.compress)
    print(f"{config.out}: {len(clips)} clips of {config.num_frames} frames, {config.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    try:
        main(tyro.cli(MakeClips))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
