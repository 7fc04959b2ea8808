"""Plays episodes of Memory Maze in the direct and in the published implementation and compares every bit:
``python -m training.benchmarks.exactness --out docs/results/exactness.json``.

Compared at reset and after each step: frame, reward, terminated, truncated, everything in `info` (pose, layout,
targets, target index and colour, maze seed), and the float64 positions and velocities of the physics.

The file is written anew after each episode. The same command again goes on with it, and plays only what it lacks; an
episode counts as there if it was played with the same code, packages and renderer, whatever the command.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import wm_gym
from training.recording.episode import RecordingOptions, make_env, policy_seed
from training.recording.policies import make_policy
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, package_versions, provenance

SIZES = ("9x9", "11x11", "13x13", "15x15")
POLICIES = ("navigator", "random")

# Modules of wm_gym.envs that decide what is compared.
CODE = ("memory_maze/env.py", "memory_maze/direct.py", "memory_maze/published.py")

Job = tuple[str, int, str, int]  # size, seed, policy, and the number of steps after which to stop


@dataclass(frozen=True)
class ExactnessConfig:
    """Compares the direct implementation of Memory Maze with the published one, bit by bit."""

    out: Path | None = None
    """JSON file for the result."""
    sizes: tuple[str, ...] = SIZES
    """Sizes of the maze."""
    steps: tuple[int, ...] = ()
    """Steps of each episode, one number for each size; 0, or none at all, plays whole episodes."""
    seeds: int = 5
    """Number of mazes of each size."""
    first_seed: int = 100
    """Seed of the first maze."""
    whole: int = 1
    """The navigator's episodes in the first so many mazes of each size are whole, whatever `steps` says."""
    workers: int = 1
    """Number of processes."""


@dataclass(frozen=True)
class Comparison:
    """Two implementations' episodes side by side; `difference` names the first one found, None if there is none."""

    size: str
    seed: int
    policy: str
    max_steps: int  # where the comparison was to stop; 0: at the end of the episode
    steps: int
    rewards: float  # sum over the steps compared
    ended: bool  # the episode was played to its end
    seconds: float
    difference: str | None


def compare(size: str, seed: int, policy_name: str, max_steps: int) -> Comparison:
    """Plays one maze in both implementations with the actions that a policy takes in the direct one.

    Args:
        size, seed: of the maze.
        policy_name: "navigator" or "random".
        max_steps: stops there if the episode has not ended; 0 plays to the end.
    """
    started = time.perf_counter()
    direct, upstream = (_make(size, implementation) for implementation in ("direct", "upstream"))
    try:
        direct.reset(seed=seed + 1)  # An earlier maze must leave nothing behind.
        frame, info = direct.reset(seed=seed)
        upstream_frame, upstream_info = upstream.reset(seed=seed)
        policy = make_policy(policy_name, direct, policy_seed(seed))
        policy.reset(info)
        outcome, upstream_outcome = (0.0, False, False), (0.0, False, False)
        steps, rewards, ended = 0, 0.0, False
        while True:
            ours = _everything(direct, frame, outcome, info)
            theirs = _everything(upstream, upstream_frame, upstream_outcome, upstream_info)
            difference = _difference(ours, theirs)
            if difference is not None or ended or steps == (max_steps or -1):
                where = None if difference is None else f"{difference} after {steps} steps"
                seconds = time.perf_counter() - started
                return Comparison(size, seed, policy_name, max_steps, steps, rewards, ended, seconds, where)
            action = policy(frame, info)
            frame, *outcome, info = direct.step(action)
            upstream_frame, *upstream_outcome, upstream_info = upstream.step(action)
            steps, rewards, ended = steps + 1, rewards + float(outcome[0]), bool(outcome[1] or outcome[2])
    finally:
        direct.close()
        upstream.close()


def run(config: ExactnessConfig) -> dict[str, Any]:
    """Plays what `config.out` lacks; returns the record of everything, which is in `config.out` too, if given.

    Raises ValueError for settings that do not fit each other.
    """
    jobs = planned(config)
    conditions = _conditions()
    origin = {**provenance("training.benchmarks.exactness", command_arguments()), "conditions": conditions}
    found = {_job(comparison): comparison for comparison in _earlier(config.out, conditions)}
    comparisons = {job: found[job] for job in jobs if job in found}
    # Long ones first, so that all workers end together.
    missing = sorted(set(jobs) - set(found), key=lambda job: (job[3] > 0, -SIZES.index(job[0]), -job[3], job))
    record = _record(jobs, comparisons, origin)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, context, end_with_parent) as pool:
        for future in as_completed([pool.submit(compare, *job) for job in missing]):
            comparison = future.result()
            print(comparison, file=sys.stderr, flush=True)
            comparisons[_job(comparison)] = comparison
            record = _record(jobs, comparisons, origin)
            if config.out is not None:
                write_json(config.out, record)
    return record


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def planned(config: ExactnessConfig) -> list[Job]:
    """The episodes to be compared, in the order of size, seed and policy. Raises ValueError as `run`."""
    steps = config.steps or (0,) * len(config.sizes)
    if len(steps) != len(config.sizes):
        raise ValueError(f"steps needs a number for each of {len(config.sizes)} sizes, got {len(steps)}.")
    jobs = []
    for size, limit in zip(config.sizes, steps, strict=True):
        for index in range(config.seeds):
            for policy in POLICIES:
                whole = index < config.whole and policy == "navigator"
                jobs.append((size, config.first_seed + index, policy, 0 if whole else limit))
    return jobs


def _job(comparison: Comparison) -> Job:
    return comparison.size, comparison.seed, comparison.policy, comparison.max_steps


def _conditions() -> dict[str, Any]:
    """What decides the bits: the code of the environment, the packages that it calls, and the renderer."""
    folder = Path(wm_gym.__file__).parent / "envs"
    code = b"".join((folder / name).read_bytes() for name in CODE)
    packages = {name: package_versions().get(name) for name in ("memory-maze", "mujoco", "dm-control", "numpy")}
    env = _make(SIZES[0], "direct")  # chooses a renderer, if the environment variable does not
    env.close()
    return {"code": hashlib.sha256(code).hexdigest()[:16], "gl": os.environ.get("MUJOCO_GL"), "versions": packages}


def _earlier(path: Path | None, conditions: dict[str, Any]) -> list[Comparison]:
    """The comparisons of an unfinished or finished record that was made under the same conditions."""
    if path is None or not path.exists():
        return []
    record = json.loads(path.read_text())
    if record.get("conditions") != conditions:
        return []
    return [Comparison(**comparison) for comparison in record["comparisons"]]


def _record(jobs: list[Job], comparisons: dict[Job, Comparison], origin: dict[str, Any]) -> dict[str, Any]:
    done = [comparisons[job] for job in jobs if job in comparisons]
    return {
        **origin,
        "episodes": len(done),
        "whole_episodes": sum(c.ended for c in done),
        "steps": sum(c.steps for c in done),
        "rewards": sum(c.rewards for c in done),
        "different": sum(c.difference is not None for c in done),
        "not_run": [list(job) for job in jobs if job not in comparisons],
        "comparisons": [asdict(c) for c in done],
    }


def _make(size: str, implementation: str) -> Any:
    """The environment without wrappers, so that nothing but its own limit ends an episode."""
    options = RecordingOptions(env_kwargs=json.dumps({"implementation": implementation}))
    return make_env(f"wm_gym/MemoryMaze-{size}-v0", options=options).unwrapped


def _everything(env: Any, frame: np.ndarray, outcome: Any, info: dict[str, Any]) -> dict[str, Any]:
    data = env._backend.physics.data
    named = dict(zip(("reward", "terminated", "truncated"), outcome, strict=True))
    return {"frame": frame, **named, **info, "qpos": data.qpos.copy(), "qvel": data.qvel.copy()}


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The name of the first entry whose type, shape or bits differ."""
    if ours.keys() != theirs.keys():
        return f"names {sorted(ours.keys() ^ theirs.keys())}"
    for name, value in ours.items():
        left, right = np.asarray(value), np.asarray(theirs[name])
        if (left.dtype, left.shape, left.tobytes()) != (right.dtype, right.shape, right.tobytes()):
            return name
    return None


def main() -> None:
    """The command."""
    config = tyro.cli(ExactnessConfig, prog="python -m training.benchmarks.exactness")
    record = run(config)
    print({name: record[name] for name in ("episodes", "whole_episodes", "steps", "rewards", "different")})
    if different := [c for c in record["comparisons"] if c["difference"] is not None]:
        sys.exit(f"{len(different)} episodes differ, the first one: {different[0]}")


if __name__ == "__main__":
    main()
