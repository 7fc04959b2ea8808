"""Measures how fast the real Memory Maze gives frames, in the direct and in the published implementation:
``python -m training.benchmarks.collect --out docs/results/collect.json``.

Whole episodes, resets included; with `--workers 16 --envs-per-worker 8 --gl egl --implementations direct` the same on a
GPU host, all processes at once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import Barrier
from typing import Any, Literal

import numpy as np
import tyro

from training.recording.episode import RecordingOptions, policy_seed
from training.recording.policies import Policy, make_policy
from training.recording.recorder import make_rows
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SECONDS_TO_START = 300.0
# What the direct implementation spends its time on, by method of its backend.
PARTS = {
    "build_maze": "_rebuild_maze",
    "compile_model": "_compile_physics",
    "upload_to_renderer": "_make_renderer",
    "render": "_render",
    "physics": "_substeps_at_once",
    "physics_near_target": "_substeps_watching_targets",
}


@dataclass(frozen=True)
class BenchConfig:
    """Measures frames per second of the real Memory Maze, resets included."""

    out: Path | None = None
    """JSON file for the result."""
    size: str = "9x9"
    """Size of the maze."""
    implementations: tuple[Literal["direct", "upstream"], ...] = ("direct", "upstream")
    """What is measured, one after the other."""
    episodes: int = 3
    """Whole episodes of each environment."""
    workers: int = 1
    """Processes at a time."""
    envs_per_worker: int = 1
    """Environments of each process, which are drawn together; in the direct implementation only."""
    gl: Literal["osmesa", "egl"] = "osmesa"
    """Software rendering, or that of a GPU."""
    policy: str = "navigator"
    """Name of the policy whose actions are played; the time that it takes itself is not counted."""
    first_seed: int = 100
    """Seed of the first maze."""


@dataclass(frozen=True)
class Timing:
    """One process: its episodes' frames and seconds."""

    frames: int
    resets: list[float]
    steps: list[float]
    parts: dict[str, float]


def _measure(
    size: str,
    implementation: Literal["direct", "upstream"],
    policy_name: str,
    seeds: list[int],
    num_rows: int,
    variables: dict[str, str],
    all_ready: Barrier,
) -> Timing:
    """Plays an episode in each of the mazes, once all processes are ready. Runs in a process of its own."""
    os.environ.update(variables)  # before MuJoCo is imported, which reads them
    options = RecordingOptions(env_kwargs=json.dumps({"implementation": implementation}) if num_rows == 1 else "{}")
    rows = make_rows(f"wm_gym/MemoryMaze-{size}-v0", num_rows, None, options)
    for row in range(num_rows):
        rows.reset(row, seeds[0] + 1_000_000)  # imports and first-time work, which a collector does once
    parts: dict[str, float] = defaultdict(float)
    if implementation == "direct" and num_rows == 1:
        _time_parts(rows.env(0).unwrapped._backend, parts)  # type: ignore[attr-defined]
    resets, steps, waiting = [], [], deque(seeds)
    running: dict[int, tuple[Policy, Any, dict[str, Any]]] = {}
    all_ready.wait(SECONDS_TO_START)
    while waiting or running:
        for row in [row for row in range(num_rows) if row not in running and waiting]:
            seed = waiting.popleft()
            started = time.perf_counter()
            obs, info = rows.reset(row, seed)
            resets.append(time.perf_counter() - started)
            policy = make_policy(policy_name, rows.env(row), policy_seed(seed))
            policy.reset(info)
            running[row] = policy, obs, info
        actions = {row: policy(obs, info) for row, (policy, obs, info) in running.items()}
        started = time.perf_counter()
        outcomes = rows.step(actions)
        steps += [(time.perf_counter() - started) / len(outcomes)] * len(outcomes)
        for row, (obs, _, terminated, truncated, info) in outcomes.items():
            running[row] = running[row][0], obs, info
            if terminated or truncated:
                del running[row]
    rows.close()
    return Timing(len(resets) + len(steps), resets, steps, dict(parts))


def _time_parts(backend: Any, parts: dict[str, float]) -> None:
    """Adds up the seconds that each method in PARTS takes."""

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                parts[part] += time.perf_counter() - started

        return call

    for part, name in PARTS.items():
        setattr(backend, name, timed(part, getattr(backend, name)))


def measure(config: BenchConfig, implementation: Literal["direct", "upstream"]) -> dict[str, Any]:
    """Frames per second of `config.workers` processes together, and what a reset and a step take."""
    context = multiprocessing.get_context("spawn")
    variables = {**SINGLE_THREAD, "MUJOCO_GL": config.gl}
    if config.gl == "egl":
        variables["PYOPENGL_PLATFORM"] = "egl"
    with context.Manager() as manager, ProcessPoolExecutor(config.workers, context) as pool:
        all_ready, futures = manager.Barrier(config.workers), []
        for worker in range(config.workers):
            count = config.episodes * config.envs_per_worker
            first = config.first_seed + worker * count
            seeds, num_rows = list(range(first, first + count)), config.envs_per_worker
            arguments = (config.size, implementation, config.policy, seeds, num_rows, variables, all_ready)
            futures.append(pool.submit(_measure, *arguments))
        timings = [future.result() for future in futures]
    resets = np.array([seconds for timing in timings for seconds in timing.resets])
    steps = np.array([seconds for timing in timings for seconds in timing.steps])
    rates = [timing.frames / (sum(timing.resets) + sum(timing.steps)) for timing in timings]
    frames = sum(timing.frames for timing in timings)
    parts = {part: sum(timing.parts.get(part, 0.0) for timing in timings) / frames * 1000 for part in PARTS}
    return {
        "frames": frames,
        "frames_per_second": round(sum(rates), 1),
        "frames_per_second_per_process": round(float(np.mean(rates)), 1),
        "frames_per_second_without_resets": round(float(len(steps) / steps.sum() * config.workers), 1),
        "reset_seconds": {"mean": round(float(resets.mean()), 4), "max": round(float(resets.max()), 4)},
        "step_milliseconds": {
            name: round(float(value) * 1000, 3)
            for name, value in (("mean", steps.mean()), ("median", np.median(steps)), ("p99", np.quantile(steps, 0.99)))
        },
        **({"milliseconds_per_frame": {k: round(v, 4) for k, v in parts.items()}} if any(parts.values()) else {}),
    }


def run(config: BenchConfig) -> dict[str, Any]:
    """Times the cases and returns their record."""
    for name in ("episodes", "workers", "envs_per_worker"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    if config.envs_per_worker > 1 and config.implementations != ("direct",):
        raise ValueError("Only the direct implementation draws several mazes together: add --implementations direct.")
    load_before = os.getloadavg()[0]
    results = {name: measure(config, name) for name in config.implementations}
    record: dict[str, Any] = {
        "size": config.size,
        "gl": config.gl,
        "workers": config.workers,
        "envs_per_worker": config.envs_per_worker,
        "episodes_per_env": config.episodes,
        "policy": config.policy,
        "seeds": [config.first_seed, config.first_seed + config.workers * config.envs_per_worker * config.episodes - 1],
        "load_average_before": round(load_before, 2),  # above 0, others had a share of the cores
        "implementations": results,
    }
    if {"direct", "upstream"} <= results.keys():
        direct, upstream = (results[name]["frames_per_second_per_process"] for name in ("direct", "upstream"))
        record["direct_over_upstream"] = round(direct / upstream, 2)
    return record


def main() -> None:
    """The command."""
    config = tyro.cli(BenchConfig, prog="python -m training.benchmarks.collect")
    record = {**provenance("training.benchmarks.collect", command_arguments()), **run(config)}
    print(json.dumps(record, indent=2))
    if config.out is not None:
        write_json(config.out, record)


if __name__ == "__main__":
    main()
