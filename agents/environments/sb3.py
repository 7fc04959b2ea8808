"""Any Gymnasium vector environment as the `VecEnv` of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

try:
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
except ImportError as error:
    raise ImportError("Agents learn with Stable-Baselines3: `pip install 'wm-gym[agents]'`.") from error

Rows = Callable[[int], dict[str, Any]]


class Sb3VecEnv(VecEnv):
    """A Gymnasium vector environment as SB3 expects one, with the rollouts that `DummyVecEnv` would give.

    - A row that ends is reset at once. Its info is that of its last step, with the last observation under
      "terminal_observation"; the info of the reset is in `reset_infos`.
    - info["TimeLimit.truncated"] is True where an episode was cut and did not terminate, which is where SB3 adds the
      critic's value to the last reward.
    - `seed(s)` gives row i the seed s + i at the next reset.
    - Attributes and methods are those of the sub-environments, if there are any. A batched environment, such as a
      dream, is one object: what it says counts for all rows, and a method is called once.

    Args:
        env: with autoreset mode SAME_STEP: `gym.make_vec(ID, num_envs=N, vectorization_mode="vector_entry_point",
            autoreset_mode="SameStep")` for a dream. Arrays may be NumPy's or PyTorch's.
        with_info: whether rows carry the environment's info. Without it a step makes no dictionary for each of
            thousands of rows; terminal observations and truncation flags are there all the same.

    Raises:
        TypeError: `env` is no vector environment.
        ValueError: another autoreset mode, which would put steps into a rollout that no action led to, or spaces that
            SB3 cannot take.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], with_info: bool = True) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"Expected a gymnasium.vector.VectorEnv (see gym.make_vec), got {type(env).__name__}.")
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"Stable-Baselines3 resets a row in the step that ends it, this environment has the autoreset mode "
                f"{getattr(mode, 'value', mode)}: make it with autoreset_mode='SameStep'."
            )
        check_spaces(env.single_observation_space, env.single_action_space)
        self.env = env
        self.spec = env.spec
        self._with_info = with_info
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """First observations of all rows, [N, ...] or a dictionary of such. Uses the seeds and options set before."""
        options = self._options[0] if self._options else {}
        seeds = list(self._seeds)
        seed = seeds if any(value is not None for value in seeds) else None
        obs, info = self.env.reset(seed=seed, options=dict(options) or None)  # pyright: ignore[reportArgumentType]
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = self._infos(info)
        return _to_numpy(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions [N, ...] of the next `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards float32 [N], dones bool [N], and an info for each row."""
        obs, rewards, terminated, truncated, info = self.env.step(self._actions)
        terminated, truncated = _to_numpy(terminated), _to_numpy(truncated)
        dones = terminated | truncated
        infos = self._infos(info)
        if dones.any():
            self._finish(dones, info, infos)
        cut = truncated & ~terminated
        for row, row_info in enumerate(infos):
            row_info["TimeLimit.truncated"] = bool(cut[row])
        # A copy: SB3 adds bootstrapped values to the rewards in place.
        return _to_numpy(obs), np.array(_to_numpy(rewards), np.float32), dones, infos

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options of the next reset, the same for all rows. Raises ValueError for a list of different ones."""
        if isinstance(options, list):
            if any(one is not options[0] and (one or options[0]) for one in options):
                raise ValueError("A vector environment is reset with one dictionary of options, not one for each row.")
            options = options[0]
        self._options = [options or {}] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each row; raises AttributeError if there is none."""
        rows = self._rows(indices)
        if isinstance(base := self.env.unwrapped, SyncVectorEnv):
            return [base.envs[row].get_wrapper_attr(attr_name) for row in rows]
        if isinstance(base, AsyncVectorEnv):
            values = base.get_attr(attr_name)
            return [values[row] for row in rows]
        return [getattr(self._owner(attr_name), attr_name)] * len(rows)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute of the rows. Raises ValueError for a part of rows that are one object."""
        rows = self._rows(indices)
        if isinstance(base := self.env.unwrapped, SyncVectorEnv):
            for row in rows:
                base.envs[row].set_wrapper_attr(attr_name, value)
        elif self._all_or_error(rows, attr_name) and isinstance(base, AsyncVectorEnv):
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(self._owner(attr_name, default=base), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method; its result for each row. Raises ValueError for a part of rows that are one object."""
        rows = self._rows(indices)
        if isinstance(base := self.env.unwrapped, SyncVectorEnv):
            return [base.envs[row].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for row in rows]
        self._all_or_error(rows, method_name)
        if isinstance(base, AsyncVectorEnv):
            return list(base.call(method_name, *method_args, **method_kwargs))
        return [getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs)] * len(rows)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each row is wrapped in `wrapper_class`, itself or as a part of the vector environment."""
        rows = self._rows(indices)
        if any(isinstance(layer, wrapper_class) for layer in self._layers()):
            return [True] * len(rows)
        if isinstance(base := self.env.unwrapped, SyncVectorEnv):
            return [is_wrapped(base.envs[row], wrapper_class) for row in rows]
        return [False] * len(rows)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture for each row; None without render_mode="rgb_array"."""
        return list(self.env.render() or [None] * self.num_envs)  # pyright: ignore[reportReturnType]

    def _finish(self, dones: np.ndarray, info: dict[str, Any], infos: list[dict[str, Any]]) -> None:
        """Puts the last observation and info into the rows that ended; what stood there was the reset's."""
        final = _row_reader(info.get("final_info", {}), self.num_envs)
        for row in np.flatnonzero(dones).tolist():
            self.reset_infos[row] = infos[row]
            infos[row] = final(row) if self._with_info else {}
            infos[row]["terminal_observation"] = _to_numpy(info["final_obs"][row])

    def _infos(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        if not self._with_info:
            return [{} for _ in range(self.num_envs)]
        read = _row_reader({key: info[key] for key in info if not key.lstrip("_").startswith("final_")}, self.num_envs)
        return [read(row) for row in range(self.num_envs)]

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[row] for row in self._get_indices(indices)]

    def _all_or_error(self, rows: list[int], name: str) -> bool:
        if sorted(rows) != list(range(self.num_envs)):
            raise ValueError(f"{name!r} belongs to all {self.num_envs} rows at once; leave indices out.")
        return True

    def _layers(self) -> list[VectorEnv[Any, Any, Any]]:
        """The environment, wrappers first."""
        layers = [self.env]
        while layers[-1] is not self.env.unwrapped:
            layers.append(layers[-1].env)  # pyright: ignore[reportAttributeAccessIssue]
        return layers

    def _owner(self, name: str, default: Any = None) -> Any:
        """The outermost layer that has the attribute."""
        owner = next((layer for layer in self._layers() if hasattr(layer, name)), default)
        if owner is None:
            raise AttributeError(f"{self.env} has no attribute {name!r}.")
        return owner


def check_spaces(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Raises ValueError for spaces that SB3's policies cannot take."""
    kinds = gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary
    parts = observation_space.spaces.values() if isinstance(observation_space, gym.spaces.Dict) else [observation_space]
    if not all(isinstance(part, kinds) for part in parts):
        raise ValueError(f"Stable-Baselines3 cannot take the observation space {observation_space}: flatten it first.")
    if not isinstance(action_space, kinds):
        raise ValueError(f"Stable-Baselines3 cannot take the action space {action_space}: flatten it first.")
    if isinstance(action_space, gym.spaces.Discrete) and action_space.start != 0:
        raise ValueError(f"Stable-Baselines3 counts actions from 0, got {action_space}: shift them in a wrapper.")


def _row_reader(info: dict[str, Any], num_envs: int) -> Rows:
    """A function that gives the info of a row out of the batched one, in which "_key" tells which rows have "key"."""
    columns: list[tuple[str, Any, np.ndarray]] = []
    for key, value in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        mask = _to_numpy(info.get(f"_{key}", np.ones(num_envs, np.bool_)))
        if isinstance(value, dict):
            columns.append((key, _row_reader(value, num_envs), mask))
        else:
            columns.append((key, _to_numpy(value).__getitem__, mask))
    return lambda row: {key: read(row) for key, read, mask in columns if mask[row]}


def _to_numpy(value: Any) -> Any:
    """Arrays and tensors, also in dictionaries, as NumPy arrays."""
    if isinstance(value, dict):
        return {key: _to_numpy(part) for key, part in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
