"""`compare`: plays what is missing, measures, and writes the results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from wm_gym.checkpoint import resolve_device
from wm_gym.comparison.config import DEFAULT_SEEDS, CompareConfig
from wm_gym.comparison.figures import Criteria, EpisodeFigures, episode_figures
from wm_gym.comparison.identity import CheckpointIdentity, identify
from wm_gym.comparison.lockstep import run_batch
from wm_gym.comparison.output import check_extras, write_results
from wm_gym.comparison.record import RecordFolder
from wm_gym.comparison.recorded import Episodes, RecordedSide, ReplayPolicy
from wm_gym.comparison.report_text import Subject
from wm_gym.comparison.sides import (
    Side,
    check_spaces,
    checkpoint_of,
    make_side,
    parse_kwargs,
)
from wm_gym.contexts import Context, load_clips
from wm_gym.machine import hardware
from wm_gym.policies.backtrack import Backtracker
from wm_gym.policies.base import Policy, policy_seed
from wm_gym.policies.loading import FunctionPolicy, Sb3Policy, load_policy
from wm_gym.seeds import parse_seeds

CPU_BATCH = 1
GPU_BATCH = 16
FORMAT_VERSION = 1  # of the settings; raised when the same settings give other episodes

PolicyMaker = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; the files under `out` hold the same."""

    out: Path
    summary: dict[str, Any]  # of compare.json
    episodes: Any  # pandas DataFrame, a row for each seed
    horizons: Any  # pandas DataFrame, a row for each range of steps
    steps: Any  # pandas DataFrame, a row for each step of each seed; compare.csv


@dataclass(frozen=True)
class _Plan:
    """A checked config with its environments named, and what decides the episodes."""

    config: CompareConfig
    env_kwargs: dict[str, Any]
    reference_id: str
    reference_kwargs: dict[str, Any]
    episodes: Episodes | None
    policy: PolicyMaker | None
    policy_name: str
    device: str
    seeds: list[int]


def compare(
    config: CompareConfig, *, policy: PolicyMaker | Any | None = None, episodes: Episodes | None = None
) -> Comparison:
    """Compares two environments, writes the results under `config.out` and returns the figures.

    Args:
        config: what is compared, and how.
        policy: in the place of `config.policy`: a function (env, seed) that returns a callable (obs, info) -> action,
            or a Stable-Baselines3 model. Its name goes into the report; a resumed run must use the same one.
        episodes: recorded ones in the place of the real environment and its policy; see `training.compare`.

    Raises:
        FileNotFoundError: no such checkpoint, policy file or recorded episode.
        ImportError: the extra compare, or a package that an environment needs, is missing.
        ValueError: environments with different spaces, an unknown id or policy, an illegal action, a number out of
            range, or a folder that holds a comparison of other settings. Finished seeds are kept.
    """
    config.check()
    check_extras(video=config.films > 0)
    plan = _plan(config, policy, episodes)
    checkpoints = _checkpoints(plan)
    folder = RecordFolder(config.out, _settings(plan, checkpoints))
    _play_missing(plan, folder)
    criteria = Criteria(config.tolerance, config.part_psnr, config.part_steps)
    measured: list[EpisodeFigures] = []
    for seed in tqdm(plan.seeds, desc="measuring", unit="episode"):
        measured.append(episode_figures(folder.read(seed), criteria))
    subject = Subject(
        config=config,
        env_kwargs=plan.env_kwargs,
        reference_id=plan.reference_id,
        reference_kwargs=plan.reference_kwargs,
        policy=Path(plan.policy_name).name if Path(plan.policy_name).is_absolute() else plan.policy_name,
        recording=None if episodes is None else episodes.name,
        env_checkpoint=checkpoints[0],
        reference_checkpoint=checkpoints[1],
    )
    return Comparison(config.out, *write_results(subject, criteria, measured))


def _plan(config: CompareConfig, policy: Any, episodes: Episodes | None) -> _Plan:
    device = config.device
    if episodes is not None:
        reference = episodes.env_id, {}
    elif config.against is not None:
        reference = config.against, parse_kwargs("against_kwargs", config.against_kwargs)
    else:
        reference = config.real, parse_kwargs("real_kwargs", config.real_kwargs)
        if Path(config.real).is_dir():
            raise ValueError(
                f"{config.real} is a folder, not an environment's id; recorded episodes are compared by "
                f"`python -m training.compare --data {config.real}`."
            )
    if config.seeds is None:
        seeds = parse_seeds(DEFAULT_SEEDS) if episodes is None else list(episodes.seeds)
    else:
        seeds = parse_seeds(config.seeds)
    if not seeds:
        raise ValueError(f"{reference[0]} has no episodes to compare with.")
    name = config.policy if policy is None else getattr(policy, "__qualname__", type(policy).__name__)
    return _Plan(
        config=config,
        env_kwargs=parse_kwargs("env_kwargs", config.env_kwargs),
        reference_id=reference[0],
        reference_kwargs=reference[1],
        episodes=episodes,
        policy=policy,
        policy_name="recorded" if episodes is not None else name,
        device=str(resolve_device(device)),
        seeds=seeds,
    )


def _play_missing(plan: _Plan, folder: RecordFolder) -> None:
    missing = [seed for seed in plan.seeds if not folder.has(seed)]
    if not missing:
        return
    config = plan.config
    batch = config.batch or (GPU_BATCH if torch.device(plan.device).type == "cuda" else CPU_BATCH)
    batch = min(batch, len(missing))
    # The horizon counts from the context, and a step more keeps a dream from ending at the last one.
    horizon = config.steps + 1
    env = make_side(config.env, plan.env_kwargs, batch, horizon, plan.device)
    sides = [env]
    try:
        if plan.episodes is not None:
            reference: Side = RecordedSide(plan.episodes, batch)
        else:
            reference = make_side(plan.reference_id, plan.reference_kwargs, batch, horizon, plan.device)
        sides.append(reference)
        check_spaces(env, reference)
        length = config.context + config.steps - 1 if not reference.takes_context else config.steps
        progress = tqdm(total=length * len(missing), desc="playing", unit="step", smoothing=0.05)
        with progress:
            for start in range(0, len(missing), batch):
                seeds = missing[start : start + batch]
                policies = [_make_policy(plan, reference, seed) for seed in seeds]
                clips = _clips(config, seeds) if reference.takes_context else None
                records = run_batch(
                    env, reference, policies, seeds, config.context, config.steps, clips, progress.update
                )
                for record in records:
                    folder.write(replace(record, hardware=hardware(plan.device)))
    finally:
        for side in sides:
            side.close()


def _make_policy(plan: _Plan, reference: Side, seed: int) -> Policy:
    if plan.episodes is not None:
        return ReplayPolicy()
    seed = policy_seed(seed)
    if plan.policy is None:
        if plan.config.policy == "backtrack":
            load_policy("navigator", reference.env, seed)  # refuses other environments than Memory Maze
            return Backtracker(seed, plan.config.context - 1)
        return load_policy(plan.config.policy, reference.env, seed)
    if hasattr(plan.policy, "predict"):
        return Sb3Policy(plan.policy)
    policy = plan.policy(reference.env, seed)
    if not callable(policy):
        raise ValueError(f"The policy {plan.policy_name} must return a callable (obs, info), got {policy!r}.")
    return policy if callable(getattr(policy, "reset", None)) else FunctionPolicy(policy)  # pyright: ignore[reportReturnType]


def _clips(config: CompareConfig, seeds: Sequence[int]) -> list[Context]:
    """The context of each seed: the clip that was recorded with it, or the one that it counts to."""
    clips = load_clips(config.clips)
    recorded = {int(seed): index for index, seed in enumerate(clips.seeds)}
    return [clips.context(recorded.get(seed, seed % len(clips)), config.context) for seed in seeds]


def _checkpoints(plan: _Plan) -> tuple[CheckpointIdentity | None, CheckpointIdentity | None]:
    """The checkpoints behind both sides; None for a side that is no dream."""
    env = identify(checkpoint_of(plan.config.env, plan.env_kwargs))
    if plan.episodes is not None:
        return env, None
    return env, identify(checkpoint_of(plan.reference_id, plan.reference_kwargs))


def _settings(plan: _Plan, checkpoints: tuple[CheckpointIdentity | None, CheckpointIdentity | None]) -> dict[str, Any]:
    """What decides the episodes, so that a folder never mixes those of different settings."""
    config = plan.config
    policy_file = Path(plan.policy_name)
    is_file = plan.policy is None and policy_file.suffix == ".zip" and policy_file.is_file()
    return {
        "format": FORMAT_VERSION,
        "env": config.env,
        "env_kwargs": plan.env_kwargs,
        "env_checkpoint": checkpoints[0] and checkpoints[0].digest,
        "reference": plan.reference_id,
        "recording": None if plan.episodes is None else plan.episodes.name,
        "reference_kwargs": plan.reference_kwargs,
        "reference_checkpoint": checkpoints[1] and checkpoints[1].digest,
        "policy": plan.policy_name,
        "policy_digest": hashlib.sha256(policy_file.read_bytes()).hexdigest()[:16] if is_file else None,
        "context": config.context,
        "steps": config.steps,
        "clips": config.clips if checkpoints[1] else None,
    }
