"""Whole real episodes side by side: one model reads the frames of all of them, and one policy acts in all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents.environments.settings import EnvSpec
from agents.policies.loading import CONFIG_FILE, load_ppo
from agents.scoring.results import Result
from wm_gym.checkpoint import load_checkpoint


class EpisodeBatch:
    """Real environments in a process each, whose memories are read in a batch on one device.

    An episode is that of `agents.scoring.episodes.play`: its seed decides maze and policy, whatever goes on beside it.

    Args:
        spec: the environment, with a memory.
        num_envs: processes.
        device: of the model that reads, and of the policies.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, device: str) -> None:
        self._device = device
        self._envs: Any = spec.make_batch(num_envs, device)

    def play(self, policy: str, seeds: Sequence[int], stream: int) -> Iterator[Result]:
        """Plays an episode of each seed; what came of them as soon as their round of `num_envs` has ended.

        Args:
            policy: a model file of `agents.ppo` that chooses among numbered actions and has no memory of its own.
            seeds: of the episodes.
            stream: added to a seed, it is that of its policy.
        """
        envs = self._envs
        spaces = envs.single_observation_space, envs.single_action_space
        model = load_ppo(Path(policy), *spaces, self._device)
        model.policy.set_training_mode(False)
        for first in range(0, len(seeds), envs.num_envs):
            part = list(seeds[first : first + envs.num_envs])
            spare = [part[-1]] * (envs.num_envs - len(part))  # rows that nobody asked for play along
            yield from self._round(model.policy, [*part, *spare], stream)[: len(part)]

    @torch.no_grad()
    def _round(self, policy: Any, seeds: list[int], stream: int) -> list[Result]:
        generators = [torch.Generator().manual_seed(seed + stream) for seed in seeds]
        obs, _ = self._envs.reset(seed=seeds)
        totals, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
        ended = np.zeros(len(seeds), np.bool_)
        while not ended.all():
            probabilities = policy.get_distribution(policy.obs_to_tensor(obs)[0]).distribution.probs.cpu()
            drawn = [
                torch.multinomial(one, 1, generator=generator)
                for one, generator in zip(probabilities, generators, strict=True)
            ]
            obs, rewards, terminated, truncated, _ = self._envs.step(torch.cat(drawn).numpy())
            totals, lengths = totals + np.where(ended, 0, rewards), lengths + ~ended
            ended |= terminated | truncated
        rows = zip(seeds, totals.tolist(), lengths.tolist(), strict=True)
        return [{"seed": seed, "return": total, "length": length} for seed, total, length in rows]

    def close(self) -> None:
        """Ends the processes."""
        self._envs.close()


def plays_in_batches(spec: EnvSpec, policy: str) -> bool:
    """Whether `EpisodeBatch` can play a policy in the environment."""
    config = Path(policy).parent.parent / CONFIG_FILE
    if spec.memory is None or not config.is_file() or json.loads(config.read_text())["recurrent"]:
        return False
    return isinstance(load_checkpoint(spec.memory.checkpoint).action_space, gym.spaces.Discrete)
