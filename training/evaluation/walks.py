"""The real walks that dreams are measured against: recorded once into a store, which other checkpoints use again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from training.recording.config import CollectConfig
from training.recording.frames import RecordingOptions
from training.recording.rollouts import Rollouts, read_rollouts
from training.recording.workers import collect
from training.store.episode_store import open_store

SPLIT = "test"


def recorded_walks(
    path: Path,
    env_id: str,
    policy: str,
    seeds: Sequence[int],
    num_frames: int,
    recording: RecordingOptions | None = None,
    workers: int = 0,
    envs_per_worker: int = 1,
) -> Rollouts:
    """The first `num_frames` frames of one walk for each seed, from the store at `path`.

    Walks that it lacks are recorded into it first, so the call may be interrupted and repeated.

    Args:
        seeds: consecutive.
        recording: how frames are made; None: as the environment shows them.
        workers: processes; 0: one for each core.
        envs_per_worker: walks that each of them records at a time.

    Raises:
        ValueError: a store of another environment or policy, or of shorter walks; walks that end too early.
        RuntimeError: a worker died; finished walks are kept.
    """
    recording = recording or RecordingOptions()
    max_steps = num_frames - 1
    missing = list(seeds)
    if path.exists():
        store = open_store(path)
        header = store.header
        if not header.is_of(env_id) or header.policy != policy:
            raise _other(path, f"walks of {header.policy} in {header.env_id}, not of {policy} in {env_id}")
        if header.recording != recording.to_json():
            raise _other(path, f"walks recorded with {header.recording}, not with {recording.to_json()}")
        present = set(store.seeds(SPLIT))
        missing = [seed for seed in seeds if seed not in present]
        if header.max_episode_steps is not None and header.max_episode_steps < max_steps:
            raise _other(path, f"walks of {header.max_episode_steps + 1} frames, and {num_frames} are needed")
        if header.max_episode_steps is None and missing:
            raise _other(path, f"whole episodes, but none of seed {missing[0]}")
        max_steps = header.max_episode_steps or max_steps
    if missing:
        collect(
            CollectConfig(
                env=env_id,
                out=path,
                frames=len(seeds) * (max_steps + 1),
                policy=policy,
                recording=recording,
                workers=min(workers or os.cpu_count() or 1, len(missing)),
                envs_per_worker=envs_per_worker,
                seed=seeds[0],
                split=SPLIT,
                max_episode_steps=max_steps,
            )
        )
    return read_rollouts(path, SPLIT, seeds, num_frames)


def _other(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} holds {what}; give another --rollouts.")


def reversed_walks(walks: Rollouts, num_frames: int) -> Rollouts:
    """The walks, followed by themselves in reverse; beyond their start they go forth again, and so on.

    The first frame that follows repeats the last one. No action walks backwards, so the actions of the reversed part
    are those that led the other way: only a pose tells a model where it goes.

    Args:
        walks: of C frames.
        num_frames: how many follow.
    """
    num_context = walks.frames.shape[1]
    back_and_forth = torch.cat([torch.arange(num_context - 1, -1, -1), torch.arange(num_context)])
    order = torch.cat([torch.arange(num_context), back_and_forth.repeat(1 + num_frames // len(back_and_forth))])
    order = order[: num_context + num_frames]
    crossed = torch.minimum(order[:-1], order[1:]).clamp(max=num_context - 2)
    return dataclasses.replace(
        walks,
        frames=walks.frames[:, order],
        actions=walks.actions[:, crossed],
        rewards=walks.rewards[:, crossed],
        pose=walks.pose[:, order],
    )
