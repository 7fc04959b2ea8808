"""PPO in a dream, judged in reality: ``python -m agents.ppo --env LSSVWM-MemoryMaze-v0 --out RUN``.

The same command trains in a real environment, as the baseline. RUN/seed_K/ has model.zip (the newest), best.zip (the
best in reality), scores.json, dreamed.json and TensorBoard's files. A run that was stopped goes on when its command is
given again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.device_ppo import DevicePPO
from agents.environments import EnvSpec, MemorySpec, parse_kwargs
from agents.networks import ImageAndMemory
from agents.policies import CONFIG_FILE, MODEL_FILE, run_models
from agents.real_score import RealScore, read_scores
from agents.sb3 import Sb3VecEnv
from wm_gym.checkpoint import load_checkpoint, resolve_device
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

FREE_TO_CHANGE = ("total_timesteps", "seeds", "device", "score_workers", "out", "patience")
# Mazes from 7,000,000 on are never trained in; the episodes that choose a model are not those that judge it.
FIRST_TRAINING_SEED_AFTER = 7_000_000


@dataclass(frozen=True)
class PpoConfig:
    """Trains policies by PPO in many dreams at once, and scores them in the real environment."""

    env: str
    """Environment to train in: a dream, or a real one as the baseline."""
    out: Path
    """Folder of the run; an unfinished run in it is continued."""
    total_timesteps: int = 10_000_000
    """Steps of all rows together, for each training seed."""
    seeds: int = 5
    """Number of policies, each with a training seed of its own."""
    num_envs: int = 256
    """Dreams in the batch, or processes of a real environment."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make as JSON, such as {"checkpoint": "runs/maze/model.safetensors"}."""
    horizon: int | None = None
    """Steps after which an episode is cut and its value estimated; None: as the environment does."""
    memory: bool = False
    """Shows the world model's memory to the policy: wm_gym.wrappers.MemoryObservation."""
    memory_checkpoint: str | None = None
    """The model that reads a real environment's frames, for the baseline; a dream is read by its own model."""
    memory_size: int = 256
    """Numbers in it."""
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

    def __post_init__(self) -> None:
        counts = ("total_timesteps", "seeds", "num_envs", "score_episodes", "num_steps", "batch_size", "epochs")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_steps * self.num_envs < 2:
            raise ValueError("num_steps * num_envs must be at least 2: PPO normalises advantages over them.")


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


def train(config: PpoConfig, argv: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Trains what is missing of a run. Returns the scores of every training seed, in order.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: settings that do not fit, spaces that PPO cannot take, a device that is not there, or a folder with
            a run of other settings.
    """
    train_spec, real_spec = make_specs(config)
    keep_config(config, train_spec, real_spec, argv)
    for seed in range(config.seeds):
        train_seed(config, seed, train_spec, real_spec)
    return {f"seed_{seed}": read_scores(config.out / f"seed_{seed}") for seed in range(config.seeds)}


def train_seed(config: PpoConfig, seed: int, train_spec: EnvSpec, real_spec: EnvSpec) -> None:
    """Trains one policy, or goes on with it."""
    folder = config.out / f"seed_{seed}"
    if is_finished(config, folder):
        return
    device = choose_device(config.device)
    on_device = train_spec.is_dream() and not config.recurrent
    env = Sb3VecEnv(train_spec.make_batch(config.num_envs, device, tensors=on_device), with_info=False)
    env = env if on_device else VecMonitor(env)
    try:
        model = make_model(config, seed, env, folder, device, on_device)
        # Training seeds are below those that are kept for evaluation; a resumed run gets others than it had.
        entropy = np.random.SeedSequence([seed, model.num_timesteps]).generate_state(1)[0]
        env.seed(int(entropy) % (FIRST_TRAINING_SEED_AFTER - config.num_envs))
        scores = RealScore(
            folder=folder,
            spec=real_spec,
            every=config.score_every,
            episodes=config.score_episodes,
            workers=config.score_workers,
            patience=config.patience,
            checkpoint_minutes=config.checkpoint_minutes,
            is_dream=train_spec.is_dream(),
        )
        remaining = config.total_timesteps - model.num_timesteps
        if remaining > 0:
            model.learn(remaining, scores, tb_log_name="ppo", reset_num_timesteps=False)
        scores.finish(model)
    finally:
        env.close()


def make_model(config: PpoConfig, seed: int, env: VecEnv, folder: Path, device: str, on_device: bool) -> Any:
    """The newest model of the folder, or one that has learned nothing.

    `on_device`: the environment is a batch of dreams that gives tensors, and rollouts stay where they are dreamed.

    Raises ValueError for spaces that the network cannot take, or a damaged file.
    """
    if config.recurrent:
        from sb3_contrib import RecurrentPPO as Algorithm

        kind = "MultiInputLstmPolicy" if config.memory else "CnnLstmPolicy"
    else:
        Algorithm, kind = DevicePPO if on_device else PPO, "MultiInputPolicy" if config.memory else "CnnPolicy"
    if (path := folder / MODEL_FILE).is_file():
        return Algorithm.load(path, env=env, device=device)
    model = Algorithm(
        kind,
        env,
        learning_rate=config.learning_rate,
        n_steps=config.num_steps,
        batch_size=min(config.batch_size, config.num_steps * config.num_envs),
        n_epochs=config.epochs,
        gamma=config.discount,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy_coefficient,
        policy_kwargs={
            "features_extractor_class": ImageAndMemory,
            "features_extractor_kwargs": {"features_dim": config.features},
        },
        tensorboard_log=str(folder / "tensorboard"),
        seed=seed,
        device=device,
    )
    if config.init is not None:
        load_initial(model, Path(config.init), seed)
    return model


def load_initial(model: Any, run: Path, seed: int) -> None:
    """Gives a model the weights of another run.

    Raises FileNotFoundError if there is no such run, ValueError if its networks are others.
    """
    models = run_models(run)
    path = models.get(f"seed_{seed}", next(iter(models.values())))
    try:
        parameters = load_from_zip_file(path, device=model.device)[1]
        model.policy.load_state_dict(parameters["policy"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"The policy {path} is no start for this run: its network is another one ({error})."
        ) from error


def choose_device(name: str) -> str:
    """The device of "auto", or the given one. Raises ValueError if it is not there."""
    return str(resolve_device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name))


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
        memory = MemorySpec(checkpoint, config.memory_size)
    return dataclasses.replace(train_spec, memory=memory), dataclasses.replace(real_spec, memory=memory)


def keep_config(config: PpoConfig, train_spec: EnvSpec, real_spec: EnvSpec, argv: Sequence[str]) -> None:
    """Writes RUN/config.json, or compares with the one that is there. Raises ValueError if the settings differ."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in (*FREE_TO_CHANGE, "memory")}
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
        before, now = ({**one["settings"], "memory": one["memory"]} for one in (earlier, record))
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


def is_finished(config: PpoConfig, folder: Path) -> bool:
    """Whether a training seed has had all its steps, or was stopped early."""
    scores = read_scores(folder)
    return bool(scores) and (scores[-1]["timesteps"] >= config.total_timesteps or scores[-1]["stopped"])


def describe(scores: dict[str, list[dict[str, Any]]]) -> str:
    """The best score of every training seed as text."""
    lines = []
    for name, history in scores.items():
        best = max(history, key=lambda one: one["real_return"])
        dreamed = "" if best["dreamed_return"] is None else f", dreamed {best['dreamed_return']:.2f}"
        lines.append(f"{name}: real return {best['real_return']:.2f}{dreamed} at step {best['timesteps']:,}")
    return "\n".join(lines)


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


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        arguments = command_arguments()
        print(describe(train(parse_arguments(arguments), arguments)))
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, gym.error.Error) as error:
        print(f"agents.ppo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
