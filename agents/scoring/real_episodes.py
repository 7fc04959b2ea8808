"""Real episodes of given seeds, led to the end of a context, from where dreamed actions are taken or a policy acts.

A GPU dreams many episodes at once (`agents.scoring.dreamed_episodes`) while real environments run in a process each,
so a check goes
in parts: a policy leads real episodes through the context, then the policy under test acts in dreams of all of them,
then its actions are taken in the real episodes. For comparison it also acts there itself.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from agents.environments.settings import EnvSpec, MemorySpec
from agents.policies.loading import PolicyMaker, policy_maker
from agents.scoring.dreamed_episodes import Dreamed, EpisodeLog
from wm_gym.comparison.record import Record, map_entries
from wm_gym.contexts import Context
from wm_gym.policies.base import policy_seed
from wm_gym.poses import POSE_SIZE


@dataclass(frozen=True)
class Replayed:
    """What dreamed actions led to in reality: `RealEpisodes.replay`."""

    record: Record
    poses: np.ndarray | None  # [C + S, 4] of the context and of the real steps, if they tell any; S less after an end


class RealEpisodes:
    """Real episodes of given seeds, in this process or in several; made by `real_episodes`."""

    def __init__(self, call: Callable[..., Iterator[Any]]) -> None:
        self._call = call

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Of observations and actions."""
        return next(self._call("spaces", _spaces, [()]))

    def lead(self, policy: str, seeds: Sequence[int], num_frames: int) -> list[Context]:
        """The first frames of each episode, with the actions of a policy between them.

        Raises ValueError if an episode ends before.
        """
        return list(self._call("context", _lead, [(policy, seed, num_frames) for seed in seeds]))

    def replay(self, seeds: Sequence[int], contexts: Sequence[Context], dreamed: Sequence[Dreamed]) -> list[Replayed]:
        """Takes the dreamed actions in the real episodes, from the end of their contexts to the end of the shorter.

        The dream is the record's environment under test, reality its reference. Where the real episode terminates, the
        rest of its rewards are zeros and its frames black: an agent gets nothing there. Where it is truncated, the
        record ends.

        Raises RuntimeError if the same actions led to another context: the environment's seed does not decide it.
        """
        return list(self._call("replay", _replay, list(zip(seeds, contexts, dreamed, strict=True))))

    def act(
        self, policy: str, memory: MemorySpec | None, seeds: Sequence[int], contexts: Sequence[Context], num_steps: int
    ) -> list[np.ndarray]:
        """Rewards [S] of the policy itself, from the end of each context on, without a dream; S is at most `num_steps`.

        It sees what it saw in `DreamRows.play`: no info, a new episode of its own, and with a memory that of a model
        which has read the context.
        """
        calls = [(policy, memory, seed, context, num_steps) for seed, context in zip(seeds, contexts, strict=True)]
        return list(self._call("acting", _act, calls))


@contextmanager
def real_episodes(spec: EnvSpec, workers: int = 1) -> Iterator[RealEpisodes]:
    """Real environments: one, or one in each of `workers` processes (0: one per core)."""
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        env = spec.make()

        def call_here(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Iterator[Any]:
            return (function(env, *one) for one in _bar(arguments, name, len(arguments)))

        try:
            yield RealEpisodes(call_here)
        finally:
            env.close()
        return
    # Spawned, for a renderer or a CUDA context does not survive a fork.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (spec,)) as pool:

        def call_there(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Iterator[Any]:
            futures = [pool.submit(_in_worker, function, *one) for one in arguments]
            return (future.result() for future in _bar(futures, name, len(futures)))

        try:
            yield RealEpisodes(call_there)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """What a process keeps between its episodes."""

    env: gym.Env[Any, Any]


def _start_worker(spec: EnvSpec) -> None:
    torch.set_num_threads(1)
    _Worker.env = spec.make()


def _in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(_Worker.env, *arguments)


def _bar(items: Sequence[Any], name: str, total: int) -> Iterator[Any]:
    return iter(tqdm(items, desc=name, total=total, unit="episode", leave=False, disable=None))


def _spaces(env: gym.Env[Any, Any]) -> tuple[gym.Space[Any], gym.Space[Any]]:
    return env.observation_space, env.action_space


def _lead(env: gym.Env[Any, Any], policy: str, seed: int, num_frames: int) -> Context:
    acts = policy_maker(policy)(env, policy_seed(seed))
    obs, info = env.reset(seed=seed)
    acts.reset(info)
    frames, actions = [np.array(obs)], []
    while len(frames) < num_frames:
        actions.append(acts(obs, info))
        obs, _, terminated, truncated, info = env.step(actions[-1])
        frames.append(np.array(obs))
        if terminated or truncated:
            raise ValueError(
                f"The real episode of seed {seed} ended at frame {len(frames)} of a context of {num_frames}: take a "
                "shorter one."
            )
    space = env.action_space
    return Context(np.stack(frames), np.array(actions, space.dtype).reshape(len(actions), *(space.shape or ())))


def _replay(env: gym.Env[Any, Any], seed: int, context: Context, dreamed: Dreamed) -> Replayed:
    obs, info = env.reset(seed=seed)
    infos = [info]
    for action in context.actions:
        obs, _, _, _, info = env.step(action)
        infos.append(info)
    if not np.array_equal(obs, context.frames[-1]):
        raise RuntimeError(
            f"The episode of seed {seed} took another course under the same actions: only environments that the seed "
            "decides can be compared with their dreams."
        )
    log = EpisodeLog()
    for action in dreamed.actions:
        obs, reward, terminated, truncated, info = env.step(action)
        infos.append(info)
        log.add(obs, float(reward), terminated, truncated)
        if log.end:
            break
    real = log.episode()
    num_steps = len(dreamed.actions) if real.end == "terminated" else len(real.rewards)
    after = num_steps - len(real.rewards)
    frames = np.concatenate([context.frames, real.frames, np.zeros((after, *context.frames.shape[1:]), np.uint8)])
    record = Record(
        seed=seed,
        reference_frames=frames,
        frames=dreamed.episode.frames[:num_steps],
        actions=np.concatenate([context.actions, dreamed.actions[:num_steps]]),
        reference_rewards=np.concatenate([real.rewards, np.zeros(after)]),
        rewards=dreamed.episode.rewards[:num_steps],
        reference_end=real.end,
        end=dreamed.episode.end if num_steps == len(dreamed.actions) else "",
        seconds=0.0,
        reference_seconds=0.0,
        map=map_entries([*infos, *[infos[-1]] * after]),
    )
    poses = [np.asarray(info["pose"], np.float64) for info in infos if "pose" in info]
    tells_poses = len(poses) == len(infos) and all(pose.shape == (POSE_SIZE,) for pose in poses)
    return Replayed(record, np.stack(poses) if tells_poses else None)


def _act(
    env: gym.Env[Any, Any], policy: str, memory: MemorySpec | None, seed: int, context: Context, num_steps: int
) -> np.ndarray:
    if memory is not None:
        env = memory.wrap(env)
    obs, _ = env.reset(seed=seed)
    for action in context.actions:
        obs, *_ = env.step(action)
    acts = _kept_maker(policy)(env, policy_seed(seed))
    acts.reset({})
    rewards, ended = [], False
    while len(rewards) < num_steps and not ended:
        obs, reward, terminated, truncated, _ = env.step(acts(obs, {}))
        rewards.append(float(reward))
        ended = terminated or truncated
    return np.array(rewards)


@lru_cache(maxsize=8)
def _kept_maker(policy: str) -> PolicyMaker:
    return policy_maker(policy)
