"""Moments of recorded episodes that a reward follows soon."""

from __future__ import annotations

import numpy as np

from training.store.episode_store import EpisodeStore


def moments_before_rewards(
    store: EpisodeStore, split: str, num_frames: int, steps: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Seeds of episodes and numbers of frames in them, [N] each: those with `num_frames` - 1 frames before them and
    the next reward `steps[0]` to `steps[1]` steps away. Raises ValueError for a range that is none."""
    nearest, farthest = steps
    if not 1 <= nearest <= farthest:
        raise ValueError(f"before_rewards needs 1 <= nearest <= farthest, got {nearest} and {farthest}.")
    moments = [np.zeros((2, 0), np.int64)]
    for number in store.seeds(split):
        distance = steps_to_reward(store.read_rewards(number, split))[num_frames - 1 :]
        last = np.flatnonzero((distance >= nearest) & (distance <= farthest)) + num_frames - 1
        moments.append(np.stack([np.full(len(last), number), last]))
    numbers, ends = np.concatenate(moments, 1)
    return numbers, ends


def steps_to_reward(rewards: np.ndarray) -> np.ndarray:
    """For each of T frames at which an action is taken, the steps until the next reward; 0 if none comes.

    Args:
        rewards: [T], `rewards[t]` of the action at frame t.
    """
    at = np.flatnonzero(rewards)
    now = np.arange(len(rewards))
    following = np.append(at, -1)[np.searchsorted(at, now)]
    return np.where(following < 0, 0, following - now + 1)
