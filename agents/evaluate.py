"""Scores a policy in an environment: ``python -m agents.evaluate --policy P --env ID --episodes 50 --out JSON``.

The file is written after every episode, and the same command goes on where it stopped. Episode i is that of environment
seed `seed + i`, whoever acts and in however many processes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from agents.environments.settings import EnvSpec, parse_kwargs
from agents.policies.loading import policy_models
from agents.scoring.episodes import EpisodePool
from agents.scoring.results import Result, gap, kept_results, policy_settings, summary
from wm_gym.checkpoint import resolve_device
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance
from wm_gym.seeds import FIRST_EVALUATION_SEED
from wm_gym.statistics import interval95


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores a policy over whole episodes: mean return and its 95% interval."""

    policy: str
    """random, navigator, oracle, PACKAGE.MODULE:FUNCTION, a Stable-Baselines3 file, or the folder of a run of
    agents.ppo, whose training seeds are all scored."""
    out: Path
    """JSON file."""
    env: str = "wm_gym/MemoryMaze-9x9-v0"
    """Environment id."""
    env_kwargs: str = "{}"
    """Further arguments of gym.make, as JSON."""
    episodes: int = 50
    """Number of episodes, for each training seed of a run."""
    seed: int = FIRST_EVALUATION_SEED
    """Seed of the first episode; nothing is trained on those from 7,000,000 on."""
    workers: int = 0
    """Number of processes; 0: one per core. 1: none beside this one."""
    max_episode_steps: int | None = None
    """Truncates episodes; None: as the environment does."""
    device: str = "cpu"
    """Where real frames are read for a policy that sees a memory."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.workers < 0 or self.seed < 0:
            raise ValueError(
                f"episodes must be at least 1, workers and seed at least 0, got {self.episodes}, {self.workers} and "
                f"{self.seed}."
            )


def evaluate(config: EvaluateConfig, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Plays what is missing in `config.out` and returns the figures over all of its episodes, as the file has them.

    Raises:
        FileNotFoundError: no such run, model or checkpoint.
        ValueError: a policy that does not fit the environment, a device that is not there, or a file with the results
            of other settings.
    """
    resolve_device(config.device)
    run = Path(config.policy)
    models, memory = policy_models(config.policy)
    spec = EnvSpec(config.env, parse_kwargs(config.env_kwargs), config.max_episode_steps, memory)
    settings = {
        **policy_settings(config.policy, models),
        "environment": spec.to_json(),
        "first_seed": config.seed,
    }
    results = kept_results(config.out, settings, "agents.evaluate")
    wanted = range(config.seed, config.seed + config.episodes)
    names = {path: name for name, path in models.items()}
    missing = []
    for path, name in names.items():
        done = {result["seed"] for result in results.setdefault(name, [])}
        missing += [(path, seed) for seed in wanted if seed not in done]
    missing.sort(key=lambda job: job[1])  # models take turns: if time runs out, all have played about as much
    with EpisodePool(spec, config.workers, config.device) as pool:
        for path, result in pool.play(missing):
            results[names[path]].append(result)
            results[names[path]].sort(key=lambda one: one["seed"])
            write_json(config.out, _report(settings, results, argv))
    report = _report(settings, results, argv)
    if (dreamed := _dreamed(run, report)) is not None:
        report |= dreamed
    write_json(config.out, report)
    return report


def _report(settings: dict[str, Any], results: dict[str, list[Result]], argv: Sequence[str]) -> dict[str, Any]:
    """All figures. Over several training seeds the interval is that of their means; else it is over episodes."""
    played = {name: one for name, one in results.items() if one}
    by_model = {name: summary(one) for name, one in played.items()}
    means = [one["mean_return"] for one in by_model.values()]
    return {
        **settings,
        "mean_return": math.fsum(means) / len(means),
        "interval95": interval95(means) if len(means) > 1 else next(iter(by_model.values()))["interval95"],
        "interval_over": "training seeds" if len(means) > 1 else "episodes",
        "by_model": by_model,
        "results": results,
        **provenance("agents.evaluate", argv),
    }


def _dreamed(run: Path, report: dict[str, Any]) -> dict[str, Any] | None:
    """What the agents of a run got in their dreams, over as many steps as the real episodes had, and the gap."""
    rates = []
    for name in report["by_model"]:
        path = run / name / "dreamed.json"
        if not path.is_file():
            return None
        rates.append(json.loads(path.read_text())["reward_per_step"])
    lengths = [one["mean_length"] for one in report["by_model"].values()]
    dreamed = sum(rate * length for rate, length in zip(rates, lengths, strict=True)) / len(rates)
    return {"dreamed_return": dreamed, "gap": gap(dreamed, report["mean_return"])}


def describe(report: dict[str, Any]) -> str:
    """The figures as a few lines of text."""
    lines = []
    for name, one in report["by_model"].items():
        lines.append(f"{name:>10}: {_with_interval(one)} over {one['episodes']} episodes")
    if len(lines) > 1:
        lines.append(f"{'all':>10}: {_with_interval(report)} over {len(lines)} {report['interval_over']}")
    if "dreamed_return" in report:
        gap_text = "none" if report["gap"] is None else f"{report['gap']:.0%}"
        lines.append(f"{'dreamed':>10}: {report['dreamed_return']:.2f} in as many steps, a gap of {gap_text}")
    return "\n".join(lines)


def _with_interval(figures: dict[str, Any]) -> str:
    low_high = figures["interval95"]
    interval = "" if low_high is None else f" [{low_high[0]:.2f}, {low_high[1]:.2f}]"
    return f"{figures['mean_return']:.2f}{interval}"


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        config = tyro.cli(EvaluateConfig, prog="python -m agents.evaluate")
        print(describe(evaluate(config, command_arguments())))
    except (ImportError, OSError, TypeError, ValueError, gym.error.Error) as error:
        print(f"agents.evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
