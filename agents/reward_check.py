"""Are dreamed rewards real? ``python -m agents.reward_check --policy P --out JSON``.

From the end of a real context a policy acts in a dream; the same actions are then taken in the real environment, from
the same point. What is found tells an agent that reaches its goals from one that has learned to please the reward head.
From the same point the agent also acts in reality itself: its return there beside the dreamed one is the gap in return.
Of dreams that tell their poses it says how far these are off, and how often they walk on where walls stop the agent.
The file is written after every batch, and the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

from agents.environments.settings import EnvSpec, parse_kwargs
from agents.policies.loading import policy_maker, policy_models
from agents.scoring.dreamed_episodes import DreamRows
from agents.scoring.pose_figures import DEFINITIONS, forward_actions, pose_lines, pose_result
from agents.scoring.real_episodes import real_episodes
from agents.scoring.results import Result, kept_results, policy_settings
from agents.scoring.reward_figures import episode_result, reward_figures
from wm_gym.checkpoint import resolve_device
from wm_gym.comparison.config import DREAM_ID, REAL_ID
from wm_gym.comparison.figures import EpisodeFigures
from wm_gym.comparison.metrics import match_rewards, psnr
from wm_gym.comparison.pictures import Captions, comparison_frames
from wm_gym.comparison.record import Record
from wm_gym.files import write_json
from wm_gym.film import write_video
from wm_gym.policies.base import WALKERS
from wm_gym.provenance import command_arguments, provenance
from wm_gym.seeds import parse_seeds

PART_PSNR = 22.0  # dB; the film's line between like and unlike, as in wm-gym compare
FILM_FPS = 15
CPU_BATCH, GPU_BATCH = 8, 64


@dataclass(frozen=True)
class RewardCheckConfig:
    """Replays dreamed actions in the real environment and compares the rewards."""

    policy: str
    """random, PACKAGE.MODULE:FUNCTION, a Stable-Baselines3 file, or the folder of a run of agents.ppo, whose training
    seeds are all checked. It acts in the dream, which gives it frames and no info."""
    out: Path
    """JSON file."""
    env: str = DREAM_ID
    """The dream."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make as JSON, such as {"checkpoint": "runs/maze/model.safetensors"}."""
    real: str = REAL_ID
    """The real environment."""
    real_kwargs: str = "{}"
    """Its arguments, as JSON."""
    seeds: str = "7000000-7000063"
    """Seeds of real episodes, such as 7000000-7000063; nothing is trained on those from 7,000,000 on."""
    context: int = 100
    """Real frames that the dream is started from."""
    context_policy: str = "navigator"
    """Acts in the real environment up to there: as `policy`, or navigator, restless or oracle in Memory Maze."""
    horizon: int = 400
    """Dreamed steps."""
    tolerance: int = 3
    """Steps by which a dreamed reward may come early or late and still be backed by a real one."""
    forward_actions: tuple[int, ...] | None = None
    """Discrete actions that ask the agent to walk on, for what becomes of walls in dreams that tell their poses; None:
    those of Memory Maze if there are six actions."""
    batch: int = 0
    """Dreams at a time; 0: 64 on a GPU, else 8. It changes the speed and nothing else."""
    workers: int = 0
    """Processes of the real environment; 0: one per core. 1: none beside this one."""
    device: str = "auto"
    """Where dreams run; auto takes a GPU if there is one."""
    film: Path | None = None
    """A video of the first episode of every batch that is played: reality beside the dream, in which the agent acts."""

    def __post_init__(self) -> None:
        smallest = {"context": 1, "horizon": 1, "tolerance": 0, "batch": 0, "workers": 0}
        for name, minimum in smallest.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.policy in WALKERS:
            raise ValueError(f"The {self.policy} reads the real environment's info, which a dream does not have.")


def check_rewards(config: RewardCheckConfig, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Plays what is missing in `config.out` and returns the figures over all of its episodes, as the file has them.

    Raises:
        FileNotFoundError: no such run, model or checkpoint.
        ValueError: a policy that does not fit, environments of different spaces, an episode that ends within the
            context, or a file with the results of other settings.
        RuntimeError: a real environment that its seed does not decide.
    """
    models, memory = policy_models(config.policy)
    dream = EnvSpec(config.env, parse_kwargs(config.env_kwargs), memory=memory)
    real = EnvSpec(config.real, parse_kwargs(config.real_kwargs))
    if not dream.is_dream():
        raise ValueError(f"Rewards are checked in a dream, {config.env} is none; give the real environment as --real.")
    settings = {
        **policy_settings(config.policy, models),
        "dream": dream.to_json(),
        "real": real.to_json(),
        "context": config.context,
        "context_policy": config.context_policy,
        "horizon": config.horizon,
        "forward_actions": config.forward_actions,
    }
    results = kept_results(config.out, settings, "agents.reward_check")
    seeds = parse_seeds(config.seeds)
    missing = {
        name: [seed for seed in seeds if seed not in {one["seed"] for one in results.get(name, [])}] for name in models
    }

    def keep(name: str, played: Sequence[Result]) -> None:
        results[name] = sorted([*results.get(name, []), *played], key=lambda one: one["seed"])
        write_json(config.out, _report(config, settings, results, argv))

    if any(missing.values()):
        _play(config, dream, real, models, missing, keep)
    report = _report(config, settings, results, argv)
    write_json(config.out, report)
    return report


def describe(report: dict[str, Any]) -> str:
    """The figures as a few lines of text."""
    lines = []
    for name, one in report["by_model"].items():
        precision, recall, first = (_with_interval(one, key) for key in ("precision", "recall", "first_precision"))
        gap = "none" if one["gap"] is None else f"{one['gap']:.0%}"
        lines += [
            f"{name}: {one['dreamed_rewards']} rewards dreamed, {one['real_rewards']} real, {one['hits']} of them both",
            f"  precision {precision}, of the first in each episode {first}; recall {recall}",
            f"  return {one['dreamed_return']:.2f} dreamed, {one['real_return']:.2f} real, gap {gap}; at most "
            f"{one['most_unbacked_in_a_row']} false rewards in a row",
        ]
        if one["acted_return"] is not None:
            gap = "none" if one["acted_gap"] is None else f"{one['acted_gap']:.0%}"
            lines.append(f"  return {one['acted_return']:.2f} where it acts in reality instead, gap {gap}")
        for row in one["by_threshold"]:
            precision, *gaps = (
                "none" if row[key] is None else f"{row[key]:.0%}"
                for key in ("precision", "acted_gap", "acted_first_gap")
            )
            lines.append(
                f"  threshold {row['threshold']:g}: {row['dreamed_rewards']} rewards dreamed, precision {precision}, "
                f"gap {gaps[0]}, up to the first reward {gaps[1]}"
            )
        lines += pose_lines(one)
    return "\n".join(lines)


def write_film(path: Path, records: Sequence[Record], tolerance: int) -> None:
    """A video of episodes, reality at the left, the dream in which the agent acts beside it. Raises ImportError."""

    def frames() -> Iterator[np.ndarray]:
        for record in records:
            real = record.reference_frames[record.num_context_frames :]
            still = record.reference_frames[record.num_context_frames - 1]
            episode = EpisodeFigures(
                record=record,
                psnr=psnr(record.frames, real),
                ssim=np.full(record.num_steps, np.nan),
                psnr_copy_last=psnr(still, real),
                agreement=match_rewards(record.reference_rewards, record.rewards, tolerance),
                parted=None,
            )
            captions = Captions(("real, replayed", "dream, acted in"), f"seed {record.seed}", None)
            yield from comparison_frames(episode, captions, PART_PSNR)

    write_video(path, frames(), FILM_FPS)


def _play(
    config: RewardCheckConfig,
    dream: EnvSpec,
    real: EnvSpec,
    models: dict[str, str],
    missing: dict[str, list[int]],
    keep: Callable[[str, list[Result]], None],
) -> None:
    device = resolve_device(config.device)
    most = max(map(len, missing.values()))
    size = min(config.batch or (GPU_BATCH if device.type == "cuda" else CPU_BATCH), most)
    rows = DreamRows(dream, size, config.horizon, str(device))
    films: list[Record] = []
    ends = dream.kwargs.get("end_at_reward", False)  # what another threshold would have gone on to is not known then
    try:
        with real_episodes(real, min(config.workers or os.cpu_count() or 1, size)) as episodes:
            if (spaces := episodes.spaces()) != rows.image_spaces:
                raise ValueError(f"{config.env} has the spaces {rows.image_spaces}, {config.real} {spaces}.")
            forward = forward_actions(config.forward_actions, rows.image_spaces[1])
            makers = {name: policy_maker(path) for name, path in models.items()}
            for make in makers.values():
                make(rows, 0)  # what cannot act here is told before anything is played
            for name, make in makers.items():
                for start in tqdm(range(0, len(missing[name]), size), desc=name, unit="batch", disable=None):
                    seeds = missing[name][start : start + size]
                    contexts = episodes.lead(config.context_policy, seeds, config.context)
                    dreamed = rows.play(make, seeds, contexts)
                    replayed = episodes.replay(seeds, contexts, dreamed)
                    acted = episodes.act(models[name], dream.memory, seeds, contexts, config.horizon)
                    likely = [None if ends else one.likely for one in dreamed]
                    where = [pose_result(*pair, forward) for pair in zip(replayed, dreamed, strict=True)]
                    records = [one.record for one in replayed]
                    keep(name, [episode_result(*one) for one in zip(records, acted, likely, where, strict=True)])
                    films.append(records[0])
    finally:
        rows.close()
    if config.film is not None:
        write_film(config.film, films, config.tolerance)


def _report(
    config: RewardCheckConfig, settings: dict[str, Any], results: dict[str, list[Result]], argv: Sequence[str]
) -> dict[str, Any]:
    played = {name: one for name, one in results.items() if one}
    return {
        **settings,
        "tolerance": config.tolerance,
        "definitions": DEFINITIONS,
        "all": reward_figures([result for one in played.values() for result in one], config.tolerance),
        "by_model": {name: reward_figures(one, config.tolerance) for name, one in played.items()},
        "results": results,
        **provenance("agents.reward_check", argv),
    }


def _with_interval(figures: dict[str, Any], name: str) -> str:
    if figures[name] is None:
        return "none"
    low, high = figures[f"{name}_interval95"]
    return f"{figures[name]:.2f} [{low:.2f}, {high:.2f}]"


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        config = tyro.cli(RewardCheckConfig, prog="python -m agents.reward_check")
        print(describe(check_rewards(config, command_arguments())))
    except (ImportError, OSError, RuntimeError, TypeError, ValueError, gym.error.Error) as error:
        print(f"agents.reward_check: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
