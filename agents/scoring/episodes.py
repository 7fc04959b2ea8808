"""Whole episodes of an environment, played by policies, in this process or in several that are kept."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium as gym
import torch
from tqdm import tqdm

from agents.environments.settings import EnvSpec
from agents.policies.loading import PolicyMaker, policy_maker
from agents.scoring.batched_episodes import EpisodeBatch, plays_in_batches
from agents.scoring.results import Result

POLICY_STREAM = 1 << 32  # keeps a policy's random numbers apart from those of its environment


class EpisodePool:
    """Environments and the policies that have acted in them, kept from one call to the next.

    Args:
        spec: the environment; every process makes one.
        workers: processes, 0 for one per core; with 1 all is done in this one. They are started when they are needed.
        device: of the models that read real frames, where policies see a memory. Not the CPU: one of them reads for all
            episodes, which are played side by side (`agents.scoring.batched_episodes`), where policies allow it.
    """

    def __init__(self, spec: EnvSpec, workers: int = 1, device: str = "cpu") -> None:
        self._spec, self._workers, self._device = spec, workers or os.cpu_count() or 1, device
        self._here: _Player | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._batch: EpisodeBatch | None = None

    def play(self, jobs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Result]]:
        """Plays an episode for each policy and environment seed; what came of it as soon as it ends, in any order.

        Args:
            jobs: policies as `agents.policies.loading.policy_maker` takes them. A model file is loaded again if it
            has changed.

        Raises what making the environment or a policy raises; RuntimeError if a process dies.
        """
        if not jobs:
            return
        if self._device != "cpu" and all(plays_in_batches(self._spec, policy) for policy in {job[0] for job in jobs}):
            yield from self._play_in_batches(jobs)
            return
        if self._pool is None and min(self._workers, len(jobs)) == 1:
            self._here = self._here or _Player(self._spec, self._device)
            for policy, seed in tqdm(jobs, desc="episodes", leave=False, disable=None):
                yield policy, self._here.play(policy, _version(policy), seed)
            return
        if self._pool is None:
            # Spawned, for a renderer or a CUDA context does not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _start_worker, (self._spec, self._device))
        futures = {self._pool.submit(_play_in_worker, policy, _version(policy), seed): policy for policy, seed in jobs}
        try:
            for future in tqdm(as_completed(futures), total=len(jobs), desc="episodes", leave=False, disable=None):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def _play_in_batches(self, jobs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Result]]:
        self._batch = self._batch or EpisodeBatch(self._spec, min(self._workers, len(jobs)), self._device)
        with tqdm(total=len(jobs), desc="episodes", leave=False, disable=None) as bar:
            for policy in dict.fromkeys(policy for policy, _ in jobs):
                seeds = [seed for one, seed in jobs if one == policy]
                for result in self._batch.play(policy, seeds, POLICY_STREAM):
                    bar.update()
                    yield policy, result

    def close(self) -> None:
        """Ends the processes, after the episodes that they are in."""
        if self._batch is not None:
            self._batch.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._here is not None:
            self._here.env.close()
        self._pool = self._here = self._batch = None

    def __enter__(self) -> EpisodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def play(env: gym.Env[Any, Any], make: Callable[[gym.Env[Any, Any], int], Any], seed: int) -> Result:
    """One whole episode of the environment's `seed`, with a policy that is decided by the seed, too."""
    policy = make(env, seed + POLICY_STREAM)
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    total, length, ended = 0.0, 0, False
    while not ended:
        obs, reward, terminated, truncated, info = env.step(policy(obs, info))
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return {"seed": seed, "return": total, "length": length}


class _Player:
    """An environment, and the makers of policies that have acted in it."""

    def __init__(self, spec: EnvSpec, device: str) -> None:
        self.env = spec.make(device)
        self._makers: dict[str, tuple[int, PolicyMaker]] = {}

    def play(self, policy: str, version: int, seed: int) -> Result:
        if policy not in self._makers or self._makers[policy][0] != version:
            self._makers[policy] = version, policy_maker(policy)
        return play(self.env, self._makers[policy][1], seed)


class _Worker:
    """What a process keeps between its episodes."""

    player: _Player


def _start_worker(spec: EnvSpec, device: str) -> None:
    torch.set_num_threads(1)
    _Worker.player = _Player(spec, device)


def _play_in_worker(policy: str, version: int, seed: int) -> Result:
    return _Worker.player.play(policy, version, seed)


def _version(policy: str) -> int:
    """Tells a model file from what was there under its name before; 0 for what is no file."""
    path = Path(policy)
    return path.stat().st_mtime_ns if path.is_file() else 0
