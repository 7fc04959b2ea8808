"""Environments as agents meet them: one at a time to be scored in, many at once to learn in, with or without memory."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

import wm_gym  # noqa: F401 (registers the environments)
from agents.environments.process_batch import ProcessBatch
from agents.environments.tensor_batch import TensorBatch
from wm_gym.world_model import WorldModel
from wm_gym.wrappers.features import MemoryKind, Remembered
from wm_gym.wrappers.memory import MemoryObservation, MemoryVectorObservation


@dataclass(frozen=True)
class MemorySpec:
    """The feature of a model's memory that an agent sees beside the image: see
    `wm_gym.wrappers.memory.MemoryObservation`."""

    checkpoint: str  # the model that reads real frames; a dream is read by the model that dreams it
    size: int = 256
    seed: int = 0
    kind: MemoryKind = "states"

    def remembered(self, model: WorldModel) -> Remembered:
        """What takes it from a memory of the model."""
        return Remembered(model.config, self.kind, self.size, self.seed, model.device)

    def wrap(self, env: gym.Env[Any, Any], device: str = "cpu") -> gym.Env[Any, Any]:
        """A real environment that shows it; `device` of the model that reads the frames."""
        return MemoryObservation(env, self.checkpoint, self.size, self.seed, device, self.kind)


@dataclass(frozen=True)
class EnvSpec:
    """What `gym.make` needs, in JSON types, so that it can be kept in a file and sent to another process."""

    env: str  # id, or "module:Id"
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None  # of a real environment; a dream has its horizon
    memory: MemorySpec | None = None

    def to_json(self) -> dict[str, Any]:
        """The specification as a dictionary of JSON types."""
        return dataclasses.asdict(self)

    def make(self, device: str = "cpu") -> gym.Env[Any, Any]:
        """One environment. Raises what `gym.make` raises, gymnasium.error.Error for an unknown id among it.

        Args:
            device: of the model that reads a real environment's frames, with a memory.
        """
        env = gym.make(self.env, disable_env_checker=True, **self._arguments())
        if self.memory is None:
            return env
        if not self.is_dream():
            return self.memory.wrap(env, device)
        return MemoryObservation(env, None, self.memory.size, self.memory.seed, kind=self.memory.kind)

    def make_batch(
        self, num_envs: int, device: str = "cpu", tensors: bool = False, envs_per_process: int = 1
    ) -> VectorEnv[Any, Any, Any]:
        """Many environments that reset in the step that ends them: dreams in one batch, others in processes.

        Args:
            num_envs: how many.
            device: of dreams, and of tensors.
            tensors: the batch speaks in tensors on that device, not in arrays.
            envs_per_process: of environments that are no dreams; more than one where the environment has a batched
                version, as Memory Maze has.

        Raises ValueError for a number of environments that does not divide into processes, or several of them in a
        process with a memory.
        """
        mode = AutoresetMode.SAME_STEP if self.memory is None else AutoresetMode.DISABLED
        if self.is_dream():
            envs = gym.make_vec(
                self.env,
                num_envs,
                vectorization_mode="vector_entry_point",
                autoreset_mode=mode.value,
                device=device,
                output="torch" if tensors else "numpy",
                **self.kwargs,
            )
        elif envs_per_process > 1:
            if num_envs % envs_per_process or self.memory is not None:
                raise ValueError(
                    f"num_envs must be a multiple of envs_per_process, without a memory; got {num_envs} and "
                    f"{envs_per_process}{'' if self.memory is None else ', with a memory'}."
                )
            envs = ProcessBatch(self.env, num_envs // envs_per_process, envs_per_process, self._arguments())
        else:
            envs = gym.make_vec(
                self.env,
                num_envs,
                vectorization_mode="async" if num_envs > 1 else "sync",
                vector_kwargs={"autoreset_mode": mode},
                **self._arguments(),
            )
        if self.memory is not None:
            checkpoint, memory = None if self.is_dream() else self.memory.checkpoint, self.memory
            envs = MemoryVectorObservation(envs, checkpoint, memory.size, memory.seed, device, memory.kind)
        return TensorBatch(envs, device) if tensors and not self.is_dream() else envs

    def _arguments(self) -> dict[str, Any]:
        limit = {} if self.max_episode_steps is None else {"max_episode_steps": self.max_episode_steps}
        return {**self.kwargs, **limit}

    def is_dream(self) -> bool:
        """Whether a world model dreams this environment. Raises as `make` for an unknown id."""
        module, _, env_id = self.env.rpartition(":")
        if module:
            importlib.import_module(module)
        entry = gym.spec(env_id).vector_entry_point
        # A dream shows its memory; other environments may have batched versions, too.
        return hasattr(load_env_creator(entry) if isinstance(entry, str) else entry, "ssm_states")


def parse_kwargs(text: str) -> dict[str, Any]:
    """The JSON object of an --env-kwargs. Raises ValueError for anything else."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Arguments of gym.make are given as a JSON object, got {text!r} ({error}).") from error
    if not isinstance(kwargs, dict):
        raise ValueError(f"Arguments of gym.make are given as a JSON object, got {text!r}.")
    return kwargs
