"""The settings of `agents.ppo`: of a run, of the environments that it needs, and of several runs at once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from agents.environments.settings import EnvSpec, MemorySpec, parse_kwargs
from agents.policies.loading import CONFIG_FILE
from wm_gym.checkpoint import load_checkpoint
from wm_gym.files import write_json
from wm_gym.provenance import provenance
from wm_gym.wrappers.features import MemoryKind

# What a run that goes on may have otherwise.
FREE_TO_CHANGE = (
    "total_timesteps",
    "minutes",
    "seeds",
    "only_seed",
    "device",
    "score_workers",
    "score_device",
    "out",
    "patience",
    "sweep",
    "backend",
    "ray_address",
    "ray_cpus",
    "ray_gpus",
)


@dataclass(frozen=True)
class PpoConfig:
    """Trains policies by PPO in many dreams at once, and scores them in the real environment."""

    env: str
    """Environment to train in: a dream, or a real one as the baseline."""
    out: Path
    """Folder of the run; an unfinished run in it is continued."""
    total_timesteps: int = 10_000_000
    """Steps of all rows together, for each training seed."""
    minutes: float | None = None
    """Ends training of a policy after so long, scores not counted; the same command then goes on. None: no limit."""
    seeds: int = 5
    """Number of policies, each with a training seed of its own."""
    only_seed: int | None = None
    """Trains this one of them and no other: for processes that share a run, such as one for each GPU."""
    num_envs: int = 256
    """Dreams in the batch, or processes of a real environment."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make as JSON, such as {"checkpoint": "runs/maze/model.safetensors"}."""
    envs_per_process: int = 1
    """Of a real environment that has a batched version: Memory Maze on a GPU (MUJOCO_GL=egl) is fastest with 8."""
    horizon: int | None = None
    """Steps after which an episode is cut and its value estimated; None: as the environment does."""
    memory: bool = False
    """Shows the world model's memory to the policy: wm_gym.wrappers.memory.MemoryObservation."""
    memory_checkpoint: str | None = None
    """The model that reads a real environment's frames, for the baseline; a dream is read by its own model."""
    memory_size: int = 256
    """Numbers in it, of kind "states"."""
    memory_kind: MemoryKind = "states"
    """What is shown of it: "states", all of it as a vector, or "map", the model's map around the agent."""
    init: str | None = None
    """Starts from what another run of agents.ppo learned: each training seed from its own, or else from the first."""
    recurrent: bool = False
    """A policy with an LSTM (sb3-contrib's RecurrentPPO)."""
    real_env: str | None = None
    """Where the policy is scored; None: the environment that the dream's model was trained on, or `env` itself."""
    real_env_kwargs: str = "{}"
    """Its further arguments, as JSON."""
    score_every: int = 1_000_000
    """Steps between two scores; 0: only at the end."""
    score_episodes: int = 10
    """Real episodes for a score."""
    score_workers: int = 1
    """Processes that play them; 0: one per core."""
    score_device: str = "cpu"
    """Where real frames are read for a policy that sees a memory: "cuda" is many times faster, beside training too."""
    patience: int = 0
    """Stops after so many scores without a better one; 0: never."""
    num_steps: int = 64
    """Steps of each row between two updates."""
    batch_size: int = 2048
    """Steps in a minibatch."""
    epochs: int = 3
    """Passes over what was collected."""
    learning_rate: float = 3e-4
    discount: float = 0.99
    gae_lambda: float = 0.95
    entropy_coefficient: float = 0.01
    clip_range: float = 0.2
    features: int = 256
    """Numbers that the policy makes of the image, and of the memory."""
    checkpoint_minutes: float = 5.0
    """Between two saves of model.zip; it is also saved at every score."""
    device: str = "auto"
    """Where policy and dreams are computed; "auto" takes the GPU if there is one."""
    sweep: str = "{}"
    """Values of these options, as JSON: {"learning_rate": [1e-4, 3e-4]}. Each combination is a run of its own, in
    OUT/learning_rate=0.0001."""
    backend: Literal["local", "ray"] = "local"
    """Where training seeds and combinations are trained: here, one after the other, or spread over a Ray cluster."""
    ray_address: str | None = None
    """With backend ray: address of the cluster, or "auto"; None takes RAY_ADDRESS, or this machine."""
    ray_cpus: int = 1
    """With backend ray: cores for each policy ..."""
    ray_gpus: float = 0.0
    """... and GPUs; half a one: two policies share it."""

    def __post_init__(self) -> None:
        counts = ("total_timesteps", "seeds", "num_envs", "score_episodes", "num_steps", "batch_size", "epochs")
        counts += ("envs_per_process",)
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.only_seed is not None and not 0 <= self.only_seed < self.seeds:
            raise ValueError(f"only_seed must be one of 0 to {self.seeds - 1}, got {self.only_seed}.")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be more than 0, got {self.minutes}.")
        if self.num_steps * self.num_envs < 2:
            raise ValueError("num_steps * num_envs must be at least 2: PPO normalises advantages over them.")
        if self.ray_cpus < 0 or self.ray_gpus < 0:
            raise ValueError(f"ray_cpus and ray_gpus must be 0 or more, got {self.ray_cpus} and {self.ray_gpus}.")


SMOKE: dict[str, Any] = {
    "total_timesteps": 60_000,
    "seeds": 1,
    "num_envs": 32,
    "num_steps": 16,
    "batch_size": 256,
    "epochs": 4,
    "learning_rate": 1e-3,
    "discount": 0.95,
    "score_every": 0,
    "score_episodes": 20,
    "features": 64,
    "device": "cpu",
}
PRESETS: dict[str, dict[str, Any]] = {"smoke": SMOKE}


def make_specs(config: PpoConfig) -> tuple[EnvSpec, EnvSpec]:
    """The environments to train in and to be scored in. Raises ValueError if the latter cannot be told."""
    kwargs = parse_kwargs(config.env_kwargs)
    train_spec = EnvSpec(config.env, kwargs)
    memory = None
    if train_spec.is_dream():
        if config.memory_checkpoint is not None:
            raise ValueError("A dream is remembered by the model that dreams it: leave memory_checkpoint out.")
        checkpoint = str(kwargs.get("checkpoint", "memory-maze"))
        real_id = config.real_env or load_checkpoint(checkpoint).metadata.get("env_id")
        if real_id is None:
            raise ValueError(f"The checkpoint {checkpoint} does not tell what it was trained on: give --real-env.")
        if config.horizon is not None:
            train_spec = dataclasses.replace(train_spec, kwargs={**kwargs, "horizon": config.horizon})
        real_spec = EnvSpec(real_id, parse_kwargs(config.real_env_kwargs))
    else:
        checkpoint = config.memory_checkpoint or "memory-maze"
        same = config.real_env is None
        train_spec = dataclasses.replace(train_spec, max_episode_steps=config.horizon)
        real_spec = EnvSpec(config.real_env or config.env, kwargs if same else parse_kwargs(config.real_env_kwargs))
    if config.memory:
        memory = MemorySpec(checkpoint, config.memory_size, kind=config.memory_kind)
    return dataclasses.replace(train_spec, memory=memory), dataclasses.replace(real_spec, memory=memory)


def keep_config(config: PpoConfig, train_spec: EnvSpec, real_spec: EnvSpec, argv: Sequence[str]) -> None:
    """Writes RUN/config.json, or compares with the one that is there. Raises ValueError if the settings differ."""
    apart = (*FREE_TO_CHANGE, "memory", "memory_kind")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in apart}
    record = {
        "settings": settings,
        "memory": None if train_spec.memory is None else dataclasses.asdict(train_spec.memory),
        "recurrent": config.recurrent,
        "train": train_spec.to_json(),
        "real": real_spec.to_json(),
    }
    path = config.out / CONFIG_FILE
    if path.is_file():
        earlier = json.loads(path.read_text())
        before, now = ({**one["settings"], "memory": _memory(one)} for one in (earlier, record))
        different = sorted(key for key in now if before.get(key) != now[key])
        if different:
            was = ", ".join(f"{key}={before.get(key)!r}" for key in different)
            raise ValueError(
                f"The run {path.parent} has other settings ({was}): continue it with these, or give --out."
            )
        return
    if config.out.exists() and any(config.out.iterdir()):
        raise ValueError(f"{config.out} has files that are no run of agents.ppo: give another --out.")
    write_json(path, {**record, **provenance("agents.ppo", argv)})


def _memory(record: dict[str, Any]) -> MemorySpec | None:
    return None if record["memory"] is None else MemorySpec(**record["memory"])


def combinations(config: PpoConfig) -> list[PpoConfig]:
    """The runs that a sweep names, each with a folder of its own; without a sweep the run itself.

    Raises ValueError for anything else than lists of values of options.
    """
    sweep = parse_kwargs(config.sweep)
    if not sweep:
        return [config]
    allowed = {one.name for one in dataclasses.fields(PpoConfig)} - {"out", "sweep", "backend", "ray_address"}
    for name, values in sweep.items():
        if name not in allowed or not isinstance(values, list) or not values:
            raise ValueError(f"A sweep is a JSON object of options with lists of values, got {name!r}: {values!r}.")
    runs = []
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items())
        if "/" in name:
            raise ValueError(f"The values of a sweep name folders and must have no slash, got {name!r}.")
        runs.append(dataclasses.replace(config, out=config.out / name, sweep="{}", **chosen))
    return runs


def parse_arguments(argv: Sequence[str]) -> PpoConfig:
    """The configuration of a command line; `--preset NAME` changes the defaults."""
    arguments = list(argv)
    preset: dict[str, Any] = {}
    if "--preset" in arguments:
        index = arguments.index("--preset")
        name = arguments[index + 1] if index + 1 < len(arguments) else None
        if name not in PRESETS:
            raise ValueError(f"--preset is one of {', '.join(PRESETS)}, got {name}.")
        preset = PRESETS[name]
        del arguments[index : index + 2]
    default = PpoConfig(env=tyro.MISSING, out=tyro.MISSING, **preset)
    return tyro.cli(PpoConfig, args=arguments, default=default, prog="python -m agents.ppo")
