"""Settings of a collection."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from training.recording.frames import RecordingOptions


@dataclass(frozen=True)
class CollectConfig:
    """Records episodes of an environment into a Zarr store, or continues one."""

    env: str
    """Environment id, as gym.make takes it: wm_gym/MemoryMaze-9x9-v0, or module:Id (minigrid:MiniGrid-Empty-8x8-v0)."""
    out: Path
    """Path of the store."""
    frames: int
    """Stops when the episodes of seeds seed, seed + 1, ... have this many frames together."""
    policy: str = "navigator"
    """navigator, restless, random, sticky, backtrack-N, mixed, or PACKAGE.MODULE:FUNCTION, called as
    function(env, seed): see training/recording/policies.py."""
    recording: Annotated[RecordingOptions, tyro.conf.arg(name="")] = field(default_factory=RecordingOptions)
    """Which image is recorded, and of which size."""
    workers: int = 1
    """Number of processes."""
    envs_per_worker: int = 1
    """Episodes that each process records at a time. 8 of Memory Maze share one wait for the GPU (MUJOCO_GL=egl)."""
    seed: int = 0
    """Seed of the first episode; from 7,000,000 on for evaluation only."""
    split: Literal["train", "test", "eval"] = "train"
    """Part of the store that receives the episodes."""
    max_episode_steps: int | None = None
    """Truncates episodes after so many steps; None keeps the environment's own limit."""
    egl_devices: int = 1
    """With MUJOCO_GL=egl: number of GPUs over which the workers are spread."""
    backend: Literal["local", "ray"] = "local"
    """Where the workers run: on this machine, or spread over a Ray cluster."""
    ray_address: str | None = None
    """With backend ray: address of the cluster, or "auto"; None takes RAY_ADDRESS, or this machine."""
