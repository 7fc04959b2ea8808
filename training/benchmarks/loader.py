"""Measures how fast windows of frames reach a device:
``python -m training.benchmarks.loader --data STORE --device cuda --out docs/results/loader.json``.

Without `--data` it makes a store of frames that compress a little worse than those of Memory Maze (flat colours with
noise), so that it runs on a host that has nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from training.data.dataset import EpisodeDataset
from training.data.loader import BatchLoader
from training.store.episode_store import Episode, EpisodeWriter, StoreHeader, create_store
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

FRAME_SIZE = 64


@dataclass(frozen=True)
class BenchConfig:
    """Measures frames per second that a `BatchLoader` delivers."""

    data: Path | None = None
    """A store; None makes one of `frames` frames in a temporary folder."""
    out: Path | None = None
    """JSON file for the result."""
    device: str = "cpu"
    """Where batches are wanted."""
    frames: int = 50_050
    """Frames of the store that is made, in episodes of 1,001."""
    batch_size: int = 32
    """Windows of a batch."""
    length: int = 400
    """Frames of a window."""
    seconds: float = 10.0
    """Time for each measurement."""
    threads: int = os.cpu_count() or 1
    """Threads that read."""
    prefetched: int = 3
    """Batches made ahead."""


def make_store(path: Path, num_frames: int) -> None:
    """Episodes of 1,001 frames 64x64, of which zstd makes 5.3 kB each; those of Memory Maze take 3.5 kB."""
    space = gym.spaces.Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    writer = EpisodeWriter(create_store(path, StoreHeader("bench/Loader-v0", space, gym.spaces.Discrete(6), "random")))
    for seed in range(max(1, num_frames // 1001)):
        random = np.random.default_rng(seed)
        blocks = random.integers(0, 200, (1001, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        noise = random.integers(0, 8, blocks.shape, np.uint8) * (random.random(blocks.shape[:3]) < 0.25)[..., None]
        writer.write(
            Episode(
                seed=seed,
                frames=blocks + noise.astype(np.uint8),
                actions=random.integers(0, 6, 1000),
                rewards=np.zeros(1000, np.float32),
                terminations=np.zeros(1000, np.bool_),
                truncations=np.arange(1000) == 999,
                pose=np.zeros((1001, 4), np.float32),
            )
        )


def measure(dataset: EpisodeDataset, config: BenchConfig) -> float:
    """Frames per second, after the first batches are there."""
    loader = BatchLoader(dataset, config.device, num_prefetched=config.prefetched)
    warm_up = config.prefetched + 2
    num_steps, started = 0, 0.0
    while num_steps <= warm_up or time.perf_counter() - started < config.seconds:
        if num_steps == warm_up:
            _synchronize(config.device)
            started = time.perf_counter()
        loader.batch(num_steps, config.batch_size, config.length)
        num_steps += 1
    _synchronize(config.device)
    seconds = time.perf_counter() - started
    loader.close()
    return (num_steps - warm_up) * config.batch_size * config.length / seconds


def run(config: BenchConfig) -> dict[str, Any]:
    """Frames per second of each way to feed: streamed from the store, and resident in the memory of the device."""
    with tempfile.TemporaryDirectory() as folder:
        path = config.data or Path(folder) / "store"
        if config.data is None:
            make_store(path, config.frames)
        streamed = EpisodeDataset(path, num_threads=config.threads, streamed=True)
        rates = {"streamed": measure(streamed, config)}
        rates["resident"] = measure(EpisodeDataset(path, device=config.device, num_threads=config.threads), config)
        stored = sum(file.stat().st_size for file in path.glob("train/*/frames/c/**/*") if file.is_file())
    return {
        "device": config.device,
        "threads": config.threads,
        "batch_size": config.batch_size,
        "length": config.length,
        "frames": streamed.num_frames,
        "frame_shape": list(streamed.frames.shape[1:]),
        "stored_bytes_per_frame": round(stored / streamed.num_frames),
        "load_average": round(os.getloadavg()[0], 2),
        "frames_per_second": {name: round(rate) for name, rate in rates.items()},
    }


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main() -> None:
    """The command."""
    config = tyro.cli(BenchConfig, prog="python -m training.benchmarks.loader")
    record = {**provenance("training.benchmarks.loader", command_arguments()), **run(config)}
    print(json.dumps(record, indent=2))
    if config.out is not None:
        write_json(config.out, record)


if __name__ == "__main__":
    main()
