"""Policies to be scored: those that `wm_gym.policies.loading` knows, and what `agents.ppo` learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents.environments.settings import MemorySpec
from wm_gym.policies.base import Policy
from wm_gym.policies.loading import load_policy

CONFIG_FILE, MODEL_FILE, BEST_FILE = "config.json", "model.zip", "best.zip"

PolicyMaker = Callable[[Any, int], Policy]  # (an environment, for its spaces; seed)


class SampledPolicy:
    """A model of `agents.ppo` that samples its actions, as it did while it learned; a seed decides all of them.

    An agent that cannot see all it would need does better at random: the most likely action may lead nowhere for ever.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self._model = model
        self._random_state = torch.Generator().manual_seed(seed).get_state()
        self._lstm_state: Any = None
        self._starts = True

    def reset(self, info: dict[str, Any]) -> None:
        """Forgets the episode before."""
        self._lstm_state, self._starts = None, True

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            # Stable-Baselines3 samples from PyTorch's global generator.
            torch.set_rng_state(self._random_state)
            action, self._lstm_state = self._model.predict(
                obs, state=self._lstm_state, episode_start=np.array([self._starts]), deterministic=False
            )
            self._random_state = torch.get_rng_state()
        self._starts = False
        return action.item() if action.ndim == 0 else action


def run_models(run: Path) -> dict[str, Path]:
    """The models of a run of `agents.ppo` by training seed: the best in reality if scores were taken, else the last.

    Raises:
        FileNotFoundError: the folder holds no run, or one that has saved nothing yet.
    """
    if not (run / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{run} holds no run of agents.ppo: there is no {CONFIG_FILE}.")
    models = {}
    for folder in sorted(run.glob("seed_*"), key=lambda path: int(path.name.removeprefix("seed_"))):
        found = [folder / name for name in (BEST_FILE, MODEL_FILE) if (folder / name).is_file()]
        if found:
            models[folder.name] = found[0]
    if not models:
        raise FileNotFoundError(f"The run {run} has saved no model yet.")
    return models


def run_memory(run: Path) -> MemorySpec | None:
    """The memory that the agents of a run see, None if they see none."""
    memory = json.loads((run / CONFIG_FILE).read_text())["memory"]
    return None if memory is None else MemorySpec(**memory)


def load_ppo(path: Path, observation_space: gym.Space[Any], action_space: gym.Space[Any], device: str = "cpu") -> Any:
    """A model that `agents.ppo` saved, for an environment of the given spaces.

    Loading runs code that the file holds: load only those that you trust.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was trained on other spaces.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no model {str(path)!r}.")
    config = json.loads((path.parent.parent / CONFIG_FILE).read_text())
    if config["recurrent"]:
        from sb3_contrib import RecurrentPPO as Algorithm
    else:
        from stable_baselines3 import PPO as Algorithm
    model = Algorithm.load(path, device=device)
    if not _same_images(model.observation_space, observation_space) or model.action_space != action_space:
        raise ValueError(
            f"The policy {path} was trained on observations {model.observation_space} and actions "
            f"{model.action_space}; this environment has {observation_space} and {action_space}."
        )
    return model


def policy_maker(spec: str) -> PolicyMaker:
    """A function (env, seed) -> policy of one episode, for a model file of a run or what `load_policy` takes."""
    path = Path(spec)
    if path.suffix != ".zip" or not (path.parent.parent / CONFIG_FILE).is_file():
        return lambda env, seed: load_policy(spec, env, seed)
    loaded: list[Any] = []

    def make(env: gym.Env[Any, Any], seed: int) -> Policy:
        if not loaded:
            loaded.append(load_ppo(path, env.observation_space, env.action_space))
        return SampledPolicy(loaded[0], seed)

    return make


def _same_images(trained: gym.Space[Any], given: gym.Space[Any]) -> bool:
    """Whether two observation spaces agree; Stable-Baselines3 moves the channels of images to the front."""
    if isinstance(trained, gym.spaces.Dict) and isinstance(given, gym.spaces.Dict):
        return trained.keys() == given.keys() and all(_same_images(trained[key], given[key]) for key in trained)
    shape = given.shape or ()
    return trained == given or (len(shape) == 3 and trained.shape == (shape[2], shape[0], shape[1]))


def policy_models(policy: str) -> tuple[dict[str, str], MemorySpec | None]:
    """What `policy_maker` takes, by name: each training seed of a run of `agents.ppo`, or else the policy itself.

    Also the memory that they see, None if they see none. Raises FileNotFoundError for a run that has saved nothing yet.
    """
    run = Path(policy)
    if (run / CONFIG_FILE).is_file():
        return {name: str(path) for name, path in run_models(run).items()}, run_memory(run)
    is_model = run.suffix == ".zip" and (run.parent.parent / CONFIG_FILE).is_file()
    return {"policy": policy}, run_memory(run.parent.parent) if is_model else None
