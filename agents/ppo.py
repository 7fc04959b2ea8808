"""PPO in a dream, judged in reality: ``python -m agents.ppo --env LSSVWM-MemoryMaze-v0 --out RUN``.

The same command trains in a real environment, as the baseline. RUN/seed_K/ has model.zip (the newest), best.zip (the
best in reality), scores.json, dreamed.json and TensorBoard's files. A run that was stopped goes on when its command is
given again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import Tensor

from agents.environments.sb3 import Sb3VecEnv
from agents.learning.config import PpoConfig, combinations, keep_config, make_specs, parse_arguments
from agents.learning.device_ppo import DevicePPO
from agents.learning.networks import ImageAndMemory
from agents.learning.ray_backend import train_on_cluster
from agents.learning.real_score import RealScore, read_scores
from agents.policies.loading import MODEL_FILE, run_memory, run_models
from wm_gym.checkpoint import resolve_device
from wm_gym.provenance import command_arguments
from wm_gym.seeds import FIRST_EVALUATION_SEED

# Mazes from 7,000,000 on are never trained in; the episodes that choose a model are not those that judge it.


def train(config: PpoConfig, argv: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Trains what is missing of a run, or of all runs of a sweep. Returns the scores of every training seed, in order.

    Raises:
        ConnectionError: there is no Ray cluster at the address.
        FileNotFoundError: no such checkpoint.
        ImportError: --backend ray without Ray.
        RuntimeError: training failed on the cluster.
        ValueError: settings that do not fit, spaces that PPO cannot take, a device that is not there, or a folder with
            a run of other settings.
    """
    jobs = {}
    for run in combinations(config):
        if config.backend == "local":  # before anything is written; else it is the cluster that has to have them
            resolve_device(run.device)
            resolve_device(run.score_device)
        keep_config(run, *make_specs(run), argv)
        prefix = "" if run.out == config.out else f"{run.out.name}/"
        seeds = range(run.seeds) if run.only_seed is None else [run.only_seed]
        jobs |= {f"{prefix}seed_{seed}": (run, seed) for seed in seeds}
    if config.backend == "ray":
        unfinished = [job for job in jobs.values() if not is_finished(job[0], job[0].out / f"seed_{job[1]}")]
        train_on_cluster(unfinished, train_seed, config.ray_address, config.ray_cpus, config.ray_gpus)
    else:
        for job in jobs.values():
            train_seed(*job)
    return {name: read_scores(run.out / f"seed_{seed}") for name, (run, seed) in jobs.items()}


def train_seed(config: PpoConfig, seed: int) -> None:
    """Trains one policy, or goes on with it. Raises MemoryError, with what to lower, if the GPU's memory runs out."""
    folder = config.out / f"seed_{seed}"
    if is_finished(config, folder):
        return
    device = str(resolve_device(config.device))
    with explain_oom(config):
        _train_on(config, seed, folder, device)


def _train_on(config: PpoConfig, seed: int, folder: Path, device: str) -> None:
    train_spec, real_spec = make_specs(config)
    on_device = not config.recurrent
    batch = train_spec.make_batch(config.num_envs, device, on_device, config.envs_per_process)
    env = Sb3VecEnv(batch, with_info=False)
    env = env if on_device else VecMonitor(env)
    try:
        model = make_model(config, seed, env, folder, device, on_device)
        # Training seeds are below those that are kept for evaluation; a resumed run gets others than it had.
        entropy = np.random.SeedSequence([seed, model.num_timesteps]).generate_state(1)[0]
        env.seed(int(entropy) % (FIRST_EVALUATION_SEED - config.num_envs))
        scores = RealScore(
            folder=folder,
            spec=real_spec,
            every=config.score_every,
            episodes=config.score_episodes,
            workers=config.score_workers,
            patience=config.patience,
            checkpoint_minutes=config.checkpoint_minutes,
            is_dream=train_spec.is_dream(),
            comparable=not train_spec.kwargs.get("end_at_reward", False),
            minutes=config.minutes,
            device=config.score_device,
        )
        remaining = config.total_timesteps - model.num_timesteps
        with closing(scores):
            if remaining > 0:
                model.learn(remaining, scores, tb_log_name="ppo", reset_num_timesteps=False)
            scores.finish(model)
    finally:
        env.close()


@contextmanager
def explain_oom(config: PpoConfig) -> Iterator[None]:
    """Makes of an out-of-memory error of the GPU a MemoryError that names the settings."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"The GPU has not enough memory; lower --num-envs (now {config.num_envs}) or --num-steps "
            f"({config.num_steps}), or give dreams contexts of fewer clips, whose memories are kept on the GPU."
        ) from error


def make_model(config: PpoConfig, seed: int, env: VecEnv, folder: Path, device: str, on_device: bool) -> Any:
    """The newest model of the folder, or one that has learned nothing.

    `on_device`: the environment is a batch that gives tensors, and rollouts stay on their device.

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
    """Gives a model the weights of another run; what that learned without a memory goes on beside one.

    Raises FileNotFoundError if there is no such run, ValueError if its networks are others.
    """
    models = run_models(run)
    path = models.get(f"seed_{seed}", next(iter(models.values())))
    try:
        parameters = load_from_zip_file(path, device=model.device)[1]
        weights: Any = parameters["policy"]
        if run_memory(run) is None and isinstance(model.observation_space, gym.spaces.Dict):
            weights = _beside_memory(weights, model.policy.state_dict())
        model.policy.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"The policy {path} is no start for this run: its network is another one ({error})."
        ) from error


def _beside_memory(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a policy of images, for one that has features of a memory after those of the image: at first it
    does as the other did."""
    beside = {key: value for key, value in own.items() if ".memory." in key}
    for key, value in weights.items():
        missing = own[key].shape[-1] - value.shape[-1] if key in own and value.ndim == 2 else 0
        beside[key] = F.pad(value, (0, max(missing, 0)))
    return beside


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


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        arguments = command_arguments()
        print(describe(train(parse_arguments(arguments), arguments)))
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError, gym.error.Error) as error:
        print(f"agents.ppo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
